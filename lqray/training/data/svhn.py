"""Street View House Numbers (Netzer et al. 2011): 32x32 colour images of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lqray.experiment.options.data import SvhnOptions
from lqray.training.augmentation import chosen_steps
from lqray.training.files import fetch, first_missing, folder
from lqray.training.images import ImageClassification, Images, standardized


def load(options: SvhnOptions) -> ImageClassification:
    """From torchvision's files, train_32x32.mat and so on. Raises MissingDataError or CorruptDataError."""
    from lqray.training.vision import torchvision

    source: Any = torchvision.datasets.SVHN
    place = folder(options)
    splits = ["train", "extra", "test"] if options.extra else ["train", "test"]
    paths: list[Path] = [place.path / source.split_list[split][1] for split in splits]

    def download() -> None:
        for split in splits:
            source(place.path, split=split, download=True)

    fetch(options, lambda: first_missing(paths) is None, download)
    if missing := first_missing(paths):
        advice = f"`download: true`, or get {source.split_list['train'][0].rpartition('/')[0]}/{missing.name}"
        raise place.missing(options.name, missing.name, advice)
    try:
        parts = {split: _images(source(place.path, split=split)) for split in splits}
    except Exception as error:  # scipy's reader of .mat files raises many kinds
        raise place.corrupt(options.name, error) from error
    test = parts.pop("test")
    train = Images(
        torch.cat([part.pixels for part in parts.values()]), torch.cat([part.labels for part in parts.values()])
    )
    return standardized(train, test, 10, chosen_steps(options.augmentation, flips=False))


def _images(part: Any) -> Images:
    return Images(torch.from_numpy(part.data), torch.from_numpy(part.labels).to(torch.int64))
