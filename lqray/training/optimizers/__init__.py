"""Optimizers, one module each. A module defines `build(options, network) -> torch.optim.Optimizer`, over all parameters
of the network that are trained."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from lqray.experiment.options.optimizer import OptimizerOptions


def build_optimizer(options: OptimizerOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trial names."""
    module: Any = importlib.import_module(f"{__name__}.{options.name}")
    optimizer: torch.optim.Optimizer = module.build(options, network)
    return optimizer
