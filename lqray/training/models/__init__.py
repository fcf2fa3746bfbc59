"""Models, one module per family. A module defines `build(options, shape, classes) -> nn.Module`; initial weights come
from torch's global generator, which the caller seeds."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from lqray.experiment.options.model import ModelOptions
from lqray.experiment.part_options import chosen_part
from lqray.experiment.parts import call, checked


def build_model(options: ModelOptions, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model that a trial names, for inputs of `shape` and `classes` logits.

    Raises PartError for one of a user's own that cannot be had.
    """
    if chosen := chosen_part("model", options):
        part, given = chosen.load()
        made: nn.Module = checked(
            chosen.what, call(chosen.what, part, options=given, shape=shape, classes=classes), nn.Module
        )
        return made
    module: Any = importlib.import_module(f"{__name__}.{options.name}")
    model: nn.Module = module.build(options, shape, classes)
    return model
