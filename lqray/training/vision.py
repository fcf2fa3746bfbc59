"""The only importer of torchvision.

torchvision's native operators are built for one build of torch. Beside another (a CPU build of torch next to the
standard wheel, say) its library does not load, and `import torchvision` dies with "operator torchvision::nms does not
exist", because it registers fakes for two operators that only the library defines. Datasets, transforms and
classification models need none of its operators; so where the library cannot load, the two schemas are defined here
first. Calling one of them then fails with torch's "not implemented" error, as it should.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_definitions: list[torch.library.Library] = []


def _library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; `pip install torchvision` for your build of torch")
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return False


if not _library_loads():
    _definitions.append(torch.library.Library("torchvision", "DEF"))
    for _schema in _SCHEMAS:
        _definitions[0].define(_schema)

import torchvision  # noqa: E402

__all__ = ["torchvision"]
