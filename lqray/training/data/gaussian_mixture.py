"""Synthetic classification: each class is a normal distribution around a centre of its own.

Centres are drawn from N(0, centre_scale**2 I), examples from N(centre, noise_scale**2 I); classes are equally many.
"""

from __future__ import annotations

import torch

from lqray.experiment.options.data import GaussianMixtureOptions
from lqray.experiment.seeding import derive_seed
from lqray.training.images import ImageClassification, Images


def load(options: GaussianMixtureOptions) -> ImageClassification:
    """Inputs of shape (1, 1, dimension), as they are drawn: not standardized. A function of the options."""
    centres = options.centre_scale * _normal(options, "centres", options.classes)

    def examples(part: str, count: int) -> Images:
        labels = torch.arange(count) % options.classes
        values = centres[labels] + options.noise_scale * _normal(options, part, count)
        return Images(values[:, None, None], labels)

    train, test = examples("train", options.train_size), examples("test", options.test_size)
    return ImageClassification(train, test, options.classes, (0.0,), (1.0,))


def _normal(options: GaussianMixtureOptions, purpose: str, count: int) -> torch.Tensor:
    """Standard normal numbers, float32 (count, dimension)."""
    generator = torch.Generator().manual_seed(derive_seed(options.data_seed, "gaussian mixture", purpose))
    return torch.randn(count, options.dimension, generator=generator)
