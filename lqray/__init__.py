"""lqray: learning to quantize on Ray.

A YAML file becomes a grid of trials; each trial trains data-parallel with gradients exchanged in a few bits; MLflow
records it. Rooms, top to bottom: `cli`, `orchestration` and `reporting`, `training`, `communication`, `quantization`,
`ops`; `experiment` is the leaf that all may read.

The names of `_PUBLIC` are lqray's from Python; each is imported when it is first asked for, so that `import lqray`
costs nothing and brings neither torch nor Ray.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "ExperimentError": "lqray.experiment.errors",
    "Quantizer": "lqray.quantization",
    "attach": "lqray.communication.attach",
    "attach_fsdp": "lqray.communication.sharded",
    "compare": "lqray.api",
    "quantized_all_reduce": "lqray.communication.functional",
    "quantized_reduce_scatter": "lqray.communication.functional",
    "report": "lqray.api",
    "run": "lqray.api",
}
"""Where each public name is defined."""

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lqray' has no attribute {name!r}; public names: {', '.join(sorted(_PUBLIC))}")
    value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
