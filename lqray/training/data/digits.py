"""scikit-learn's handwritten digits: 1,797 real 8x8 images of 10 classes that ship with the package.

The last 360 of a fixed permutation are the test set.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lqray.experiment.options.data import DataOptions
from lqray.training.images import ImageClassification, Images, standardized

_TEST = 360


def load(options: DataOptions) -> ImageClassification:
    """Pixels 0 to 16. Raises nothing: the data is in the scikit-learn package."""
    flat, classes = _shipped()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(classes))
    pixels = torch.from_numpy(flat[order].reshape(-1, 1, 8, 8))
    labels = torch.from_numpy(classes[order].astype(np.int64))
    train = Images(pixels[:-_TEST].contiguous(), labels[:-_TEST].contiguous())
    test = Images(pixels[-_TEST:].contiguous(), labels[-_TEST:].contiguous())
    return standardized(train, test, classes=10)


def _shipped() -> tuple[np.ndarray, np.ndarray]:
    """uint8 pixels (N, 64) and labels (N,). Read without scikit-learn, which takes a process two and a half seconds to
    import, where its file is found in its package."""
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations if package else None) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)
