"""torch's own post-local SGD (Lin et al., ICLR 2020): parameters are averaged now and then; with `exchange.every`."""

METHOD = None
