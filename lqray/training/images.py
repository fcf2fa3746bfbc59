"""Datasets that fit a device, as one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lqray.training.augmentation import Augmentation, augment
from lqray.training.dataset import Batch, Split


@dataclass(frozen=True)
class Images:
    """Labelled examples. pixels: (N, C, H, W), uint8 or float32. labels: (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    def to(self, device: torch.device) -> Images:
        """The same on another device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageClassification:
    """A dataset that fits a device; see `lqray.training.dataset.Dataset`.

    mean, deviation: per channel, in pixel units, that `normalized` takes out. augmentation: steps that training batches
    go through, on uint8 pixels.
    """

    train: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    augmentation: tuple[Augmentation, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    @property
    def train_examples(self) -> int:
        """Size of the training set."""
        return len(self.train)

    @property
    def test_examples(self) -> int:
        """Size of the test set."""
        return len(self.test)

    def to(self, device: torch.device) -> ImageClassification:
        """The same on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    @cached_property
    def _scale_and_offset(self) -> tuple[Tensor, Tensor]:
        """float32 (C, 1, 1) each, such that pixels * scale + offset is (pixels - mean) / deviation."""
        device = self.train.pixels.device
        scale = torch.tensor([1 / deviation for deviation in self.deviation], device=device)
        offset = torch.tensor([-m / d for m, d in zip(self.mean, self.deviation, strict=True)], device=device)
        return scale.view(-1, 1, 1), offset.view(-1, 1, 1)

    def normalized(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / deviation, float32, a new tensor."""
        scale, offset = self._scale_and_offset
        return (pixels.to(torch.float32) * scale).add_(offset)

    def train_batch(self, chosen: Tensor, seed: int) -> Batch:
        """See `lqray.training.dataset.Dataset.train_batch`."""
        chosen = chosen.to(self.train.labels.device)
        pixels = augment(self.train.pixels.index_select(0, chosen), self.augmentation, seed)
        return self.normalized(pixels), self.train.labels[chosen]

    def feed(self, draws: Iterable[tuple[Tensor, int]]) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.feed`."""
        for chosen, seed in draws:
            yield self.train_batch(chosen, seed)

    def evaluation(self, split: Split, part: int, parts: int, batch_size: int) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.evaluation`."""
        images = self.train if split == "train" else self.test
        own_pixels, own_labels = images.pixels[part::parts], images.labels[part::parts]
        for pixels, labels in zip(own_pixels.split(batch_size), own_labels.split(batch_size), strict=True):
            yield self.normalized(pixels), labels


def standardized(
    train: Images, test: Images, classes: int, augmentation: tuple[Augmentation, ...] = ()
) -> ImageClassification:
    """A dataset of uint8 images whose training pixels become of mean 0 and deviation 1 in every channel."""
    mean, deviation = moments(train.pixels)
    return ImageClassification(train, test, classes, mean, deviation, augmentation)


def moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (1 where it is 0) of each channel of `pixels`, uint8 (N, C, H, W), from exact sums."""
    channels = pixels.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for block in pixels.split(8192):
        for channel in range(channels):
            counts[channel] += torch.bincount(block[:, channel].flatten(), minlength=256)
    values = torch.arange(256)
    size = pixels.numel() // channels
    means, deviations = [], []
    for own in counts:
        total, squares = int((own * values).sum()), int((own * values * values).sum())
        means.append(total / size)
        deviations.append(((size * squares - total * total) / (size * max(size - 1, 1))) ** 0.5 or 1.0)
    return tuple(means), tuple(deviations)
