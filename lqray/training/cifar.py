"""CIFAR-10 and CIFAR-100, which differ in their classes alone, as torchvision reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lqray.experiment.options.data import CifarOptions
from lqray.training.augmentation import chosen_steps
from lqray.training.files import fetch, first_missing, folder
from lqray.training.images import ImageClassification, Images, standardized


def load_cifar(options: CifarOptions, kind: str, classes: int) -> ImageClassification:
    """The dataset whose torchvision class is `kind`. Raises MissingDataError or CorruptDataError."""
    from lqray.training.vision import torchvision

    source: Any = getattr(torchvision.datasets, kind)
    place = folder(options)
    names = [name for name, _ in (*source.train_list, *source.test_list)] + [source.meta["filename"]]
    paths: list[Path] = [place.path / source.base_folder / name for name in names]
    fetch(options, lambda: first_missing(paths) is None, lambda: source(place.path, download=True))
    if missing := first_missing(paths):
        wanted = str(missing.relative_to(place.path))
        raise place.missing(options.name, wanted, f"`download: true`, or unpack {source.filename} there ({source.url})")
    try:
        train, test = (_images(source(place.path, train=part)) for part in (True, False))
    except Exception as error:  # a pickle that is none can raise anything
        raise place.corrupt(options.name, error) from error
    return standardized(train, test, classes, chosen_steps(options.augmentation, flips=True))


def _images(part: Any) -> Images:
    pixels = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
    return Images(pixels, torch.tensor(part.targets, dtype=torch.int64))
