"""Image datasets that fit a device, as one uint8 tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.training.data import Batch, Split


@dataclass(frozen=True)
class Images:
    """Labelled images. pixels: (N, C, H, W) uint8. labels: (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()


@dataclass(frozen=True)
class ImageClassification:
    """A dataset that fits a device; see `lqray.training.data.Dataset`. mean, deviation: of the training pixels, per
    channel, in pixel units."""

    train: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    @property
    def train_examples(self) -> int:
        """Size of the training set."""
        return len(self.train)

    def to(self, device: torch.device) -> ImageClassification:
        """The same on another device."""
        train, test = (Images(part.pixels.to(device), part.labels.to(device)) for part in (self.train, self.test))
        return ImageClassification(train, test, self.classes, self.mean, self.deviation)

    def normalized(self, pixels: Tensor) -> Tensor:
        """float32 pixels of mean 0 and deviation 1 over the training set."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        deviation = torch.tensor(self.deviation, device=pixels.device).view(-1, 1, 1)
        return (pixels.to(torch.float32) - mean) / deviation

    def train_batch(self, chosen: Tensor, seed: int) -> Batch:
        """See `lqray.training.data.Dataset.train_batch`."""
        chosen = chosen.to(self.train.labels.device)
        return self.normalized(self.train.pixels[chosen]), self.train.labels[chosen]

    def feed(self, draws: Iterable[tuple[Tensor, int]]) -> Iterator[Batch]:
        """See `lqray.training.data.Dataset.feed`."""
        for chosen, seed in draws:
            yield self.train_batch(chosen, seed)

    def evaluation(self, split: Split, part: int, parts: int, batch_size: int) -> Iterator[Batch]:
        """See `lqray.training.data.Dataset.evaluation`."""
        images = self.train if split == "train" else self.test
        own_pixels, own_labels = images.pixels[part::parts], images.labels[part::parts]
        for pixels, labels in zip(own_pixels.split(batch_size), own_labels.split(batch_size), strict=True):
            yield self.normalized(pixels), labels
