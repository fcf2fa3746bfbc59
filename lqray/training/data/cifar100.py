"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32 colour, in 100 classes."""

from __future__ import annotations

from lqray.experiment.options.data import CifarOptions
from lqray.training.cifar import load_cifar
from lqray.training.images import ImageClassification


def load(options: CifarOptions) -> ImageClassification:
    """See `load_cifar`."""
    return load_cifar(options, "CIFAR100", 100)
