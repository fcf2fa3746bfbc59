"""torch DDP's own PowerSGD hook (Vogels et al., NeurIPS 2019): gradients travel as low-rank factors; a baseline."""

METHOD = None
