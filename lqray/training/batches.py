"""The order in which workers see the examples of a training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray.experiment.seeding import derive_seed


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

    def draws(self, start: int, stop: int, workers: range) -> Iterator[tuple[Tensor, int]]:
        """For each iteration from `start` to before `stop`, for each of `workers`: which examples, and the seed of
        their augmentation."""
        for iteration in range(start, stop):
            for worker in workers:
                yield self.indices(iteration, worker), derive_seed(self.seed, "augmentation", iteration, worker)

    def extra_indices(self, iteration: int, sample: int, worker: int, purpose: str = "extra gradient") -> Tensor:
        """int64 (batch_size,): a random minibatch for a gradient beside the training, a function of its arguments."""
        key = derive_seed(self.seed, purpose, iteration, sample, worker)
        generator = np.random.Generator(np.random.Philox(key))
        return torch.from_numpy(generator.choice(self.examples, self.batch_size, replace=False))


@lru_cache(maxsize=2)
def _permutation(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "data order", epoch)))
    return generator.permutation(examples)
