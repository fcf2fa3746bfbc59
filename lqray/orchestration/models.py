"""Models that were recorded, for whoever loads them. Recorded models ask for their loader by this name (`loader_module`
in MLmodel): it stays, wherever the loader is."""

from lqray.orchestration.recording.models import ModelError, _load_pyfunc, load_model

__all__ = ["ModelError", "_load_pyfunc", "load_model"]
