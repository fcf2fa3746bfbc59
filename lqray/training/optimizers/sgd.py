"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

import torch
from torch import nn

from lqray.experiment.options.optimizer import SgdOptions
from lqray.training.decayed import parameter_groups


def build(options: SgdOptions, network: nn.Module) -> torch.optim.SGD:
    """torch.optim.SGD."""
    return torch.optim.SGD(
        parameter_groups(network.parameters(), options),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )
