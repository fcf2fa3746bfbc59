"""The optimizer that steps along how far workers came."""

from __future__ import annotations

import torch

from lqray.experiment.options.outer import OuterOptions
from lqray.training.anchors import Anchors


def build_outer(options: OuterOptions, anchors: Anchors) -> torch.optim.Optimizer:
    """The outer optimizer over all anchors, which steps those that have a gradient."""
    if options.optimizer == "adam":
        return torch.optim.Adam(anchors.values(), options.lr, (options.beta1, options.beta2), options.eps)
    nesterov = options.optimizer == "nesterov"
    return torch.optim.SGD(anchors.values(), options.lr, options.momentum, nesterov=nesterov)
