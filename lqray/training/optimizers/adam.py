"""Adam (Kingma and Ba 2015)."""

from __future__ import annotations

import torch
from torch import nn

from lqray.experiment.options.optimizer import AdamOptions
from lqray.training.decayed import parameter_groups


def build(options: AdamOptions, network: nn.Module) -> torch.optim.Adam:
    """torch.optim.Adam."""
    return torch.optim.Adam(
        parameter_groups(network.parameters(), options),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
    )
