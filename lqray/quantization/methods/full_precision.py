"""SuperSGD: nothing is quantized; gradients are averaged by torch DDP's own all-reduce."""

METHOD = None
