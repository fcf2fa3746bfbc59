"""Multinomial logistic regression: one fully connected layer (with two classes: logistic regression)."""

from __future__ import annotations

import math

from torch import nn

from lqray.experiment.options.model import ModelOptions


def build(options: ModelOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Input (N, channels, height, width); output (N, classes)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
