"""Multi-layer perceptron: fully connected layers with ReLU between them."""

from __future__ import annotations

import itertools
import math

from torch import nn

from lqray.experiment.options.model import MlpOptions


def build(options: MlpOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Input (N, channels, height, width); output (N, classes)."""
    widths = [math.prod(shape), *options.layers]
    hidden = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], classes))
