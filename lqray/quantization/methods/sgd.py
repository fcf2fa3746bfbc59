"""Plain SGD: one worker, no exchange."""

METHOD = None
