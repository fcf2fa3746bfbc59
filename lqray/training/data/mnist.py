"""MNIST (LeCun et al. 1998): 60,000 training and 10,000 test images, 28x28 grey, of handwritten digits."""

from __future__ import annotations

from lqray.experiment.options.data import DigitImagesOptions
from lqray.training.augmentation import chosen_steps
from lqray.training.idx import load_idx
from lqray.training.images import ImageClassification


def load(options: DigitImagesOptions) -> ImageClassification:
    """See `load_idx`."""
    return load_idx(options, chosen_steps(options.augmentation, flips=False), "put its four files there")
