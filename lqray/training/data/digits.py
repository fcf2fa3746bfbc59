"""scikit-learn's handwritten digits: 1,797 real 8x8 images of 10 classes that ship with the package.

The last 360 of a fixed permutation are the test set.
"""

from __future__ import annotations

import numpy as np
import torch

from lqray.experiment.dataset_options import DataOptions
from lqray.training.images import ImageClassification, Images, standardized

_TEST = 360


def load(options: DataOptions) -> ImageClassification:
    """Pixels 0 to 16. Raises nothing: the data is in the scikit-learn package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(bunch.target))
    pixels = torch.from_numpy(bunch.images[order].astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target[order].astype(np.int64))
    train = Images(pixels[:-_TEST].contiguous(), labels[:-_TEST].contiguous())
    test = Images(pixels[-_TEST:].contiguous(), labels[-_TEST:].contiguous())
    return standardized(train, test, classes=10)
