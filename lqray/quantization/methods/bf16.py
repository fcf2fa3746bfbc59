"""torch DDP's own hook: gradients travel as bfloat16; a baseline."""

METHOD = None
