"""ImageNet, or any images in folders train/<class>/ and val/<class>/, read from disk as training goes on.

Training: a random crop of 8% to 100% of the area, resized, and a flip; evaluation: the shorter side resized, the
centre cut out (He et al. 2016). Images are decoded and resized by worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lqray.experiment.options.data import ImagenetOptions
from lqray.experiment.seeding import derive_seed
from lqray.training.dataset import Batch, Split
from lqray.training.files import CorruptDataError, Folder, first_missing, folder

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the training set's channels, pixels in 0 to 1."""

Key = tuple[Split, int, int | None]
"""An example: its split, its number, and the seed of its augmentation; None: as for evaluation."""


_WANTED = "train/<class>/*.JPEG and val/<class>/*.JPEG, with the same classes"
_ADVICE = "ImageNet asks for an account: image-net.org; any images in such folders will do"


def load(options: ImagenetOptions) -> ImageFolders:
    """Lists the files. Raises MissingDataError or CorruptDataError."""
    from lqray.training.vision import torchvision

    place, folders = _there(options)
    try:
        train, test = (torchvision.datasets.ImageFolder(str(part)) for part in folders)
    except FileNotFoundError as error:
        raise place.missing(options.name, f"{_WANTED} ({error})", _ADVICE) from error
    _check_classes(options, place, train.classes, test.classes)
    samples: dict[Split, list[tuple[str, int]]] = {"train": train.samples, "test": test.samples}
    return ImageFolders(
        Files(samples, options.size), len(train.classes), options.loading_processes, torch.device("cpu")
    )


def look(options: ImagenetOptions) -> str:
    """How many classes there are, each with an image; a million files are not listed. Raises what `load` raises."""
    place, folders = _there(options)
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = []
    for part in folders:
        found = sorted(one for one in part.iterdir() if one.is_dir())
        empty = [one for one in found if not _holds(one, IMG_EXTENSIONS)]
        if empty or not found:
            why = f"no image in {empty[0].relative_to(place.path)}" if empty else f"no class in {part.name}"
            raise place.missing(options.name, f"{_WANTED} ({why})", _ADVICE)
        classes.append([one.name for one in found])
    _check_classes(options, place, *classes)
    return f"{len(classes[0]):,} classes"


def _there(options: ImagenetOptions) -> tuple[Folder, list[Path]]:
    from lqray.training import vision  # noqa: F401  # makes torchvision importable

    place = folder(options)
    folders = [place.path / "train", place.path / "val"]
    if first_missing(folders):
        raise place.missing(options.name, _WANTED, _ADVICE)
    return place, folders


def _check_classes(options: ImagenetOptions, place: Folder, train: list[str], test: list[str]) -> None:
    if train != test:
        raise place.corrupt(
            options.name, ValueError(f"train/ has {len(train)} classes, val/ {len(test)}, not the same")
        )


def _holds(place: Path, endings: tuple[str, ...]) -> bool:
    """Whether a file of one of these endings is anywhere below."""
    return any(name.lower().endswith(endings) for _, _, names in os.walk(place, followlinks=True) for name in names)


@dataclass(frozen=True)
class Files:
    """samples: path and label of every example. An item is (pixels, uint8 (3, size, size), label)."""

    samples: dict[Split, list[tuple[str, int]]]
    size: int

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Raises CorruptDataError for a file that is no image. Leaves torch's random state as it is."""
        from PIL import Image

        split, index, seed = key
        path, label = self.samples[split][index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise CorruptDataError(f"{path} cannot be read as an image: {error}; replace it") from error
        return self._resized(image, seed), label

    def _resized(self, image: Any, seed: int | None) -> Tensor:
        from lqray.training import vision  # noqa: F401  # makes torchvision importable

        # isort: split
        from torchvision.transforms import v2

        if seed is None:
            steps = [v2.Resize(self.size * 256 // 224), v2.CenterCrop(self.size)]
        else:
            steps = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
        with torch.random.fork_rng([]):
            torch.manual_seed(seed or 0)
            for step in steps:
                image = step(image)
        pixels: Tensor = v2.functional.pil_to_tensor(image)
        return pixels


@dataclass(frozen=True)
class ImageFolders:
    """See `lqray.training.dataset.Dataset`. processes: that load ahead of the training; with 0 it waits for each
    batch."""

    files: Files
    classes: int
    processes: int
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self.files.size, self.files.size

    @property
    def train_examples(self) -> int:
        """Size of the training set."""
        return len(self.files.samples["train"])

    @property
    def test_examples(self) -> int:
        """Size of the test set."""
        return len(self.files.samples["test"])

    def to(self, device: torch.device) -> ImageFolders:
        """The same, giving its batches on another device."""
        return replace(self, device=device)

    def train_batch(self, chosen: Tensor, seed: int) -> Batch:
        """See `lqray.training.dataset.Dataset.train_batch`."""
        pixels, labels = zip(*(self.files[key] for key in _keys(chosen, seed)), strict=True)
        return self._ready(torch.stack(pixels), torch.tensor(labels))

    def feed(self, draws: Iterable[tuple[Tensor, int]]) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.feed`."""
        yield from self._loaded(_keys(*draw) for draw in draws)

    def evaluation(self, split: Split, part: int, parts: int, batch_size: int) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.evaluation`."""
        own = range(part, len(self.files.samples[split]), parts)
        batch_size = min(batch_size, 128)  # images of this size fill the memory sooner
        starts = range(0, len(own), batch_size)
        yield from self._loaded([(split, index, None) for index in own[at : at + batch_size]] for at in starts)

    def _loaded(self, batches: Iterable[list[Key]]) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            self.files,  # type: ignore[arg-type]  # torch wants its own class; any __getitem__ will do
            batch_sampler=batches,  # of keys, not numbers
            num_workers=self.processes,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for pixels, labels in loader:
            yield self._ready(pixels, labels)

    def _ready(self, pixels: Tensor, labels: Tensor) -> Batch:
        pixels = pixels.to(self.device, non_blocking=True).to(torch.float32) / 255
        mean = torch.tensor(MEAN, device=self.device).view(-1, 1, 1)
        deviation = torch.tensor(DEVIATION, device=self.device).view(-1, 1, 1)
        return (pixels - mean) / deviation, labels.to(self.device, non_blocking=True)


def _keys(chosen: Tensor, seed: int) -> list[Key]:
    """Of a training batch; every example has a seed of its own."""
    return [("train", index, derive_seed(seed, "image", at)) for at, index in enumerate(chosen.tolist())]
