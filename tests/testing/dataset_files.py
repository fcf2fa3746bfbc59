"""Small files in the formats that torchvision's dataset classes read."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from lqray.training.vision import torchvision

TRAIN, TEST = 60, 30
"""Examples of the small datasets."""


def images(count: int, channels: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Random images (count, channels, side, side), the channels of different brightness."""
    generator = np.random.default_rng(seed)
    bright = np.array([255, 128, 64])[:channels, None, None]
    return generator.integers(0, bright, (count, channels, side, side), dtype=np.int64).astype(np.uint8)


def idx(values: NDArray[np.uint8]) -> bytes:
    """An idx file of bytes."""
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_idx(folder: Path, zipped: bool = False) -> None:
    """The four files of MNIST and Fashion-MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", TRAIN, 0), ("t10k", TEST, 1)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        contents = {"images-idx3": idx(images(count, 1, 28, seed)[:, 0]), "labels-idx1": idx(labels)}
        for kind, content in contents.items():
            path = folder / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)


def write_cifar(root: Path, patch: pytest.MonkeyPatch, kind: str) -> None:
    """CIFAR's pickles, with torchvision's checksums, which only the real files have, set aside."""
    source: Any = getattr(torchvision.datasets, kind)
    for field in ("train_list", "test_list"):
        patch.setattr(source, field, [[name, None] for name, _ in getattr(source, field)])
    patch.setattr(source, "meta", {**source.meta, "md5": None})
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    classes, key = (10, "labels") if kind == "CIFAR10" else (100, "fine_labels")
    seed = 0
    for names, total in ((source.train_list, max(TRAIN, classes)), (source.test_list, max(TEST, classes))):
        for name, _ in names:
            count, seed = total // len(names), seed + 1
            labels = [(seed * count + i) % classes for i in range(count)]
            content = {"data": images(count, 3, 32, seed).reshape(count, -1), key: labels}
            (folder / name).write_bytes(pickle.dumps(content))
    content = {source.meta["key"]: [str(label) for label in range(classes)]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(content))


def write_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    """SVHN's .mat files; the digit 0 has the label 10."""
    source: Any = torchvision.datasets.SVHN
    patch.setattr(source, "split_list", {split: [*spec[:2], None] for split, spec in source.split_list.items()})
    for seed, (split, count) in enumerate({"train": TRAIN, "extra": TRAIN, "test": TEST}.items()):
        labels = np.arange(count) % 10
        content = {"X": images(count, 3, 32, seed).transpose(2, 3, 1, 0), "y": np.where(labels, labels, 10)[:, None]}
        savemat(root / f"{split}_32x32.mat", content)


def write_imagenet(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Folders of pictures of several sizes, grey ones among them."""
    for part, count, seed in (("train", 12, 0), ("val", 6, 20)):
        for index in range(count):
            folder = root / part / f"n{index % 3:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(images(1, 3, 20 + index, seed + index)[0].transpose(1, 2, 0))
            (picture.convert("L") if index == 4 else picture).save(folder / f"{index}.png")


def write_text(root: Path) -> None:
    """Some pages of words, one of them packed; no two windows of them are alike."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("one.txt", "more/two.md.gz", "three.py")):
        letters = np.random.default_rng(seed).integers(ord("a"), ord("z") + 1, 900, dtype=np.uint8)
        letters[::7] = ord(" ")
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(letters.tobytes()) if path.suffix == ".gz" else letters.tobytes())


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "cifar10": lambda root, patch: write_cifar(root, patch, "CIFAR10"),
    "cifar100": lambda root, patch: write_cifar(root, patch, "CIFAR100"),
    "fashion_mnist": lambda root, patch: write_idx(root / "FashionMNIST" / "raw"),
    "imagenet": write_imagenet,
    "mnist": lambda root, patch: write_idx(root, zipped=True),
    "svhn": write_svhn,
    "text": lambda root, patch: write_text(root),
}
"""By dataset: writes its small files into an empty folder."""
