"""A small convolutional network: two 3x3 convolutions with 2x2 max pooling, one hidden layer."""

from __future__ import annotations

from torch import nn

from lqray.experiment.options.model import CnnOptions


def build(options: CnnOptions, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Input (N, channels, height, width) with sides of at least 4; output (N, classes)."""
    channels, height, width = shape
    first, second = options.channels
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), options.hidden),
        nn.ReLU(),
        nn.Linear(options.hidden, classes),
    )
