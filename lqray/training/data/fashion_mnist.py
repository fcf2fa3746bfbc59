"""Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images, 28x28 grey, of clothes in 10 classes.

Debian and Ubuntu have it as a package.
"""

from __future__ import annotations

from lqray.experiment.options.data import FashionImagesOptions
from lqray.training.augmentation import chosen_steps
from lqray.training.idx import load_idx
from lqray.training.images import ImageClassification

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"


def load(options: FashionImagesOptions) -> ImageClassification:
    """See `load_idx`."""
    advice = f"`apt-get install dataset-fashion-mnist` and `root: {DEBIAN_FOLDER}`"
    return load_idx(options, chosen_steps(options.augmentation, flips=True), advice)
