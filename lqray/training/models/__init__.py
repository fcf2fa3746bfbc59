"""Models, one module per family. A module defines `build(options, shape, classes) -> nn.Module`; initial weights come
from torch's global generator, which the caller seeds."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from lqray.experiment.options.model import ModelOptions


def build_model(options: ModelOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The model that a trial names, for images of `shape` (channels, height, width) and `classes` logits."""
    module: Any = importlib.import_module(f"{__name__}.{options.name}")
    model: nn.Module = module.build(options, shape, classes)
    return model
