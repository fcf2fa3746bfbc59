"""Optimizers, one module each. A module defines `build(options, network) -> torch.optim.Optimizer`, over all parameters
of the network. Each of its parameter groups keeps, under a schedule, the ratio of its `lr` to that of the options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lqray.experiment.errors import PartError
from lqray.experiment.options.optimizer import AdamOptions, MuonOptions, OptimizerOptions
from lqray.experiment.part_options import Chosen, chosen_part
from lqray.experiment.parts import call, checked


def build_optimizer(options: OptimizerOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trial names. Raises PartError for one of a user's own that cannot be had."""
    if chosen := chosen_part("optimizer", options):
        part, given = chosen.load()
        if isinstance(part, type):
            made = _of_class(chosen, part, given, network)
        else:
            made = call(chosen.what, part, options=given, network=network)
        own: torch.optim.Optimizer = checked(chosen.what, made, torch.optim.Optimizer)
        return own
    module: Any = importlib.import_module(f"{__name__}.{options.name}")
    optimizer: torch.optim.Optimizer = module.build(options, network)
    return optimizer


def _of_class(chosen: Chosen, part: type, given: Any, network: nn.Module) -> Any:
    """Of a class such as torch's: its parameters, and options by keyword."""
    options = given if isinstance(given, Mapping) else given.model_dump()
    known = inspect.signature(part).parameters
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for key in options:
        if not free and key not in known:
            place = "optimizer" if key in chosen.above else "optimizer.options"
            allowed = ", ".join(list(known)[1:])
            raise PartError(f"{place}.{key}: found that {chosen.reference} has no {key!r}; allowed: {allowed}")
    try:
        return part(network.parameters(), **options)
    except (TypeError, ValueError) as error:
        raise PartError(f"optimizer.options: found {options}, of which {chosen.reference} says: {error}") from error


def lr_ratios(optimizer: torch.optim.Optimizer, lr: float) -> list[float]:
    """Of each parameter group of an optimizer that was just made: its `lr`, divided by that of the options."""
    return [float(group.get("lr", lr)) / lr for group in optimizer.param_groups]


def moment_decay(options: OptimizerOptions) -> float:
    """Weight of the past in Adam's second moment: the optimizer's own, or Adam's default for one that has none."""
    return (
        options.beta2 if isinstance(options, AdamOptions | MuonOptions) else AdamOptions.model_fields["beta2"].default
    )
