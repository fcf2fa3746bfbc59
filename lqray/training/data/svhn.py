"""Street View House Numbers (Netzer et al. 2011): 32x32 colour images of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lqray.experiment.options.data import SvhnOptions
from lqray.training.augmentation import chosen_steps
from lqray.training.files import Folder, fetch, first_missing, folder
from lqray.training.images import ImageClassification, Images, standardized


def load(options: SvhnOptions) -> ImageClassification:
    """From torchvision's files, train_32x32.mat and so on. Raises MissingDataError or CorruptDataError."""
    source, place, splits = _fetched(options)
    try:
        parts = {split: _images(source(place.path, split=split)) for split in splits}
    except Exception as error:  # scipy's reader of .mat files raises many kinds
        raise place.corrupt(options.name, error) from error
    test = parts.pop("test")
    train = Images(
        torch.cat([part.pixels for part in parts.values()]), torch.cat([part.labels for part in parts.values()])
    )
    return standardized(train, test, 10, chosen_steps(options.augmentation, flips=False))


def look(options: SvhnOptions) -> str:
    """How many training examples there are, by the heads of the files, whose checksums are compared; the pictures, two
    GB of them, stay where they are. Raises what `load` raises."""
    from scipy.io import whosmat

    source, place, splits = _fetched(options)
    from torchvision.datasets.utils import check_integrity

    counts = {}
    try:
        for split in splits:
            _, name, md5 = source.split_list[split]
            if not check_integrity(str(place.path / name), md5):
                raise ValueError(f"{name} has another checksum than the one that is published")
            counts[split] = {field: shape for field, shape, _ in whosmat(place.path / name)}["y"][0]
    except Exception as error:
        raise place.corrupt(options.name, error) from error
    return f"{sum(counts.values()) - counts['test']:,} training examples"


def _fetched(options: SvhnOptions) -> tuple[Any, Folder, list[str]]:
    """(torchvision's class, folder, splits), the files being there. Raises MissingDataError."""
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
    return source, place, splits


def _images(part: Any) -> Images:
    return Images(torch.from_numpy(part.data), torch.from_numpy(part.labels).to(torch.int64))
