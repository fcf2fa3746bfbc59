"""Optimizers of torch, by the name of their options."""

from __future__ import annotations

import torch
from torch import nn

from lqray.experiment.options.optimizer import AdamOptions, AdamWOptions, OptimizerOptions, SgdOptions


def build_optimizer(options: OptimizerOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trial names, over all parameters of the network."""
    parameters = network.parameters()
    if isinstance(options, SgdOptions):
        return torch.optim.SGD(
            parameters,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.nesterov,
        )
    assert isinstance(options, AdamOptions)
    kind = torch.optim.AdamW if isinstance(options, AdamWOptions) else torch.optim.Adam
    return kind(
        parameters,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
    )
