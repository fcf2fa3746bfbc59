"""Synthetic linear regression: targets w·x + noise of normal features x, w ~ N(0, I / trace of their covariance)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lqray.experiment.options.data import LinearOptions
from lqray.experiment.seeding import derive_seed
from lqray.training.dataset import Batch, Split


def load(options: LinearOptions) -> Regression:
    """A function of the options. Features have the covariance diag(condition**(-i / (dimension - 1))), i = 0, 1, ..."""
    exponents = torch.linspace(0, -1, options.dimension, dtype=torch.float64)
    deviations = (options.condition**exponents).sqrt()
    weights = _normal(options, "weights", 1)[0] / deviations.square().sum().sqrt()

    def examples(part: str, count: int) -> Batch:
        features = (_normal(options, part, count) * deviations).float()
        noise = options.noise_scale * _normal(options, f"{part} noise", count)[:, 0]
        return features, (features.double() @ weights + noise).float()

    train, test = examples("train", options.train_size), examples("test", options.test_size)
    return Regression(train, test, options.noise_scale**2 / 2, weights.float())


def _normal(options: LinearOptions, purpose: str, count: int) -> Tensor:
    """Standard normal numbers, float64 (count, dimension); of noise, (count, 1)."""
    generator = torch.Generator().manual_seed(derive_seed(options.data_seed, "linear", purpose))
    width = 1 if purpose.endswith("noise") else options.dimension
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Regression:
    """Examples of a regression that fit a device; see `lqray.training.dataset.Dataset`. Inputs are float32 (B,
    dimension), targets float32 (B,).

    train, test: all inputs and targets. optimum: expected test loss, half the squared error, of the weights that made
    the targets: half the variance of the noise. weights: these, float32 (dimension,).
    """

    train: Batch
    test: Batch
    optimum: float
    weights: Tensor
    classes: ClassVar[int] = 1
    task: ClassVar[str] = "regression"

    @property
    def shape(self) -> tuple[int]:
        """(dimension,)."""
        return (self.train[0].shape[1],)

    @property
    def train_examples(self) -> int:
        """Size of the training set."""
        return len(self.train[1])

    @property
    def test_examples(self) -> int:
        """Size of the test set."""
        return len(self.test[1])

    def to(self, device: torch.device) -> Regression:
        """The same on another device."""
        (train, test), weights = ((x.to(device), y.to(device)) for x, y in (self.train, self.test)), self.weights
        return replace(self, train=train, test=test, weights=weights.to(device))

    def train_batch(self, chosen: Tensor, seed: int) -> Batch:
        """See `lqray.training.dataset.Dataset.train_batch`. Nothing is random."""
        inputs, targets = self.train
        chosen = chosen.to(targets.device)
        return inputs[chosen], targets[chosen]

    def feed(self, draws: Iterable[tuple[Tensor, int]]) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.feed`."""
        for chosen, seed in draws:
            yield self.train_batch(chosen, seed)

    def evaluation(self, split: Split, part: int, parts: int, batch_size: int) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.evaluation`."""
        inputs, targets = self.train if split == "train" else self.test
        yield from zip(inputs[part::parts].split(batch_size), targets[part::parts].split(batch_size), strict=True)
