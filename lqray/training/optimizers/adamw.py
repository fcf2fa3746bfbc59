"""AdamW: Adam with weight decay apart from the gradient (Loshchilov and Hutter 2019)."""

from __future__ import annotations

import torch
from torch import nn

from lqray.experiment.options.optimizer import AdamWOptions
from lqray.training.decayed import parameter_groups


def build(options: AdamWOptions, network: nn.Module) -> torch.optim.AdamW:
    """torch.optim.AdamW."""
    return torch.optim.AdamW(
        parameter_groups(network.parameters(), options),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
    )
