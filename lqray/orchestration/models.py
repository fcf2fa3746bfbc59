"""The name by which recorded models ask for their loader (`loader_module` in MLmodel): it stays, wherever that is."""

from lqray.orchestration.recording.models import _load_pyfunc, load_model

__all__ = ["_load_pyfunc", "load_model"]
