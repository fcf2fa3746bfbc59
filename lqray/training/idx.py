"""Datasets in four files of the MNIST format (idx): training and test images and labels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lqray.experiment.options.data import DownloadedOptions
from lqray.training.augmentation import Augmentation
from lqray.training.data_files import IDX_FILES, IDX_KINDS, idx_files
from lqray.training.files import fetch, folder
from lqray.training.images import ImageClassification, Images, standardized

CLASSES = 10


def load_idx(options: DownloadedOptions, augmentation: tuple[Augmentation, ...], advice: str) -> ImageClassification:
    """The dataset of IDX_KINDS that is named, from `idx_files`. advice: how else to get them.

    Raises MissingDataError, or CorruptDataError when a file is not of the format or files do not fit one another.
    """
    place, kind = folder(options), IDX_KINDS[options.name]
    fetch(options, lambda: idx_files(place.path, kind) is not None, lambda: _download(kind, place.path))
    paths = idx_files(place.path, kind)
    if paths is None:
        wanted = f"{', '.join(IDX_FILES)}, each as it is or with .gz, there or in {kind}/raw"
        raise place.missing(options.name, wanted, f"`download: true`, or {advice}")
    try:
        train, test = _images(paths[0], paths[1]), _images(paths[2], paths[3])
        if train.pixels.shape[2:] != test.pixels.shape[2:]:
            raise ValueError(f"training images of {train.pixels.shape[2:]}, test images of {test.pixels.shape[2:]}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise place.corrupt(options.name, error) from error
    return standardized(train, test, CLASSES, augmentation)


def _download(kind: str, root: Path) -> None:
    from lqray.training.vision import torchvision

    getattr(torchvision.datasets, kind)(root, download=True)


def _images(pixels: Path, labels: Path) -> Images:
    images, classes = read_idx(pixels, 3), read_idx(labels, 1)
    if len(images) != len(classes) or not len(images):
        raise ValueError(f"{pixels.name} has {len(images)} images, {labels.name} {len(classes)} labels")
    if classes.max() >= CLASSES:
        raise ValueError(f"{labels.name} has the label {classes.max()}; allowed: 0 to {CLASSES - 1}")
    return Images(torch.from_numpy(images)[:, None], torch.from_numpy(classes.astype(np.int64)))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file of bytes, gzipped where the name ends in .gz. Raises ValueError if it is none."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path.name} is no idx file of bytes in {dimensions} dimensions")
    shape: Sequence[int] = np.frombuffer(content[4:start], ">u4").tolist()
    expected, found = int(np.prod(shape)), len(content) - start
    if found != expected:
        raise ValueError(f"{path.name} has {found:,} bytes of data; its header says {expected:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
