"""torch DDP's own hook: gradients travel as float16; a baseline."""

METHOD = None
