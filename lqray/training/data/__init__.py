"""Datasets, one module each, and the order in which workers see their examples.

A module defines `load(options, seed) -> ImageClassification`; its name is the dataset's name in YAML.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray.experiment.options import DataOptions
from lqray.training.seeding import derive_seed


@dataclass(frozen=True)
class Images:
    """Labelled images. pixels: (N, C, H, W) uint8. labels: (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()


@dataclass(frozen=True)
class ImageClassification:
    """A dataset that fits a device. mean, deviation: of the training pixels, per channel, in pixel units."""

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

    def to(self, device: torch.device) -> ImageClassification:
        """The same on another device."""
        train, test = (Images(part.pixels.to(device), part.labels.to(device)) for part in (self.train, self.test))
        return ImageClassification(train, test, self.classes, self.mean, self.deviation)

    def normalized(self, pixels: Tensor) -> Tensor:
        """float32 pixels of mean 0 and deviation 1 over the training set."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        deviation = torch.tensor(self.deviation, device=pixels.device).view(-1, 1, 1)
        return (pixels.to(torch.float32) - mean) / deviation


def load_dataset(options: DataOptions) -> ImageClassification:
    """The dataset that a trial names."""
    module: Any = importlib.import_module(f"{__name__}.{options.name}")
    dataset: ImageClassification = module.load(options)
    return dataset


@dataclass(frozen=True)
class Batches:
    """Which examples a worker sees at an iteration: a pure function of (seed, iteration, worker).

    Every epoch is a new permutation of the training set; each step takes the next workers * batch_size examples of it,
    every worker its own share. What is left at the end of an epoch and does not fill a step is not used in it.
    """

    examples: int
    batch_size: int
    workers: int
    seed: int

    def __post_init__(self) -> None:
        if self.examples < self.batch_size * self.workers:
            raise ValueError(
                f"a step of {self.workers} workers with batch_size {self.batch_size} needs "
                f"{self.workers * self.batch_size} examples; the training set has {self.examples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training set."""
        return self.examples // (self.batch_size * self.workers)

    def indices(self, iteration: int, worker: int) -> Tensor:
        """int64 (batch_size,): positions in the training set."""
        epoch, step = divmod(iteration, self.steps_per_epoch)
        start = (step * self.workers + worker) * self.batch_size
        return torch.from_numpy(_permutation(self.examples, self.seed, epoch)[start : start + self.batch_size])

    def extra_indices(self, iteration: int, sample: int, worker: int) -> Tensor:
        """int64 (batch_size,): a random minibatch for a gradient beside the training, a function of its arguments."""
        key = derive_seed(self.seed, "extra gradient", iteration, sample, worker)
        generator = np.random.Generator(np.random.Philox(key))
        return torch.from_numpy(generator.choice(self.examples, self.batch_size, replace=False))


@lru_cache(maxsize=2)
def _permutation(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "data order", epoch)))
    return generator.permutation(examples)
