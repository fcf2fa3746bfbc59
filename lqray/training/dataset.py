"""What a dataset is, and how one is found: `data/NAME.py` defines `load(options) -> Dataset`, for that name in YAML."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lqray.experiment.options.data import DataOptions
from lqray.experiment.part_options import chosen_part
from lqray.experiment.parts import call, checked

Split = Literal["train", "test"]
Batch = tuple[Tensor, Tensor]
"""Inputs (B, *shape), and what is wanted of them, (B, ...), on the dataset's device: images, float32, and their labels,
int64 (B,); or tokens, int64 (B, T), and those that follow, int64 (B, T)."""


@runtime_checkable
class Dataset(Protocol):
    """Examples, and what is wanted of them. Nothing here touches torch's global random state.

    One that is not for classification says so in an attribute `task`, a name of `lqray.training.tasks`.
    """

    @property
    def classes(self) -> int:
        """How many labels, or tokens, there are: 0 to classes - 1; 1 where a number is wanted."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input: (channels, height, width) of an image, (context,) of a text."""

    @property
    def train_examples(self) -> int:
        """Size of the training set."""

    @property
    def test_examples(self) -> int:
        """Size of the test set."""

    def to(self, device: torch.device) -> Dataset:
        """The same, giving its batches on another device."""

    def train_batch(self, chosen: Tensor, seed: int) -> Batch:
        """The training examples `chosen`, int64 (B,), augmented by random numbers of `seed`, unsigned 64-bit."""

    def feed(self, draws: Iterable[tuple[Tensor, int]]) -> Iterator[Batch]:
        """`train_batch` of each of `draws`, in order; a dataset on disk loads ahead."""

    def evaluation(self, split: Split, part: int, parts: int, batch_size: int) -> Iterator[Batch]:
        """Every `parts`-th example of a split from number `part` on, as for testing: without augmentation. The parts
        together give each example once."""


def load_dataset(options: DataOptions) -> Dataset:
    """The dataset that a trial names. Raises PartError for one of a user's own that cannot be had."""
    if chosen := chosen_part("data", options):
        part, given = chosen.load()
        own: Dataset = checked(chosen.what, call(chosen.what, part, options=given), Dataset)
        return own
    module: Any = importlib.import_module(f"lqray.training.data.{options.name}")
    dataset: Dataset = module.load(options)
    return dataset
