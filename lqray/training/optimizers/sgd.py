"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

import torch
from torch import nn

from lqray.experiment.options.optimizer import SgdOptions


def build(options: SgdOptions, network: nn.Module) -> torch.optim.SGD:
    """torch.optim.SGD."""
    return torch.optim.SGD(
        network.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )
