"""What holds of every dataset: see `lqray.training.dataset.Dataset`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lqray.experiment.options.data import DataOptions
from lqray.experiment.parts import is_reference
from lqray.experiment.schema import data_options
from lqray.training.data_files import data_files
from lqray.training.dataset import Batch, Dataset, Split, load_dataset

_BATCH = 64


def dataset_suite(name: str, **options: Any) -> type:
    """A class of tests of the dataset that `data: {name: ...}` loads. All of it is read, several times: give it one
    that is small, by its options. options: of lqray's dataset, or what stands below `data.options` for one of a user's
    own."""
    config = {"name": name, "options": options} if is_reference(name) else {"name": name, **options}
    return type("DatasetSuite", (_DatasetSuite,), {"config": config})


class _DatasetSuite:
    config: dict[str, Any]

    def options(self) -> DataOptions:
        return data_options(self.config)

    def made(self) -> Dataset:
        return load_dataset(self.options())

    def chosen(self, dataset: Dataset) -> Tensor:
        return torch.randint(0, dataset.train_examples, (16,), generator=torch.Generator().manual_seed(3))

    def test_it_says_what_it_has(self) -> None:
        dataset = self.made()
        kind = _kind(dataset)
        assert dataset.classes >= kind.classes
        assert len(dataset.shape) in kind.dimensions, f"a shape is {kind.shape}; found {dataset.shape}"
        assert min(dataset.shape) >= 1
        assert dataset.train_examples >= 1
        assert dataset.test_examples >= 1

    def test_batches_are_of_its_shape_and_labels_of_its_classes(self) -> None:
        dataset = self.made()
        _check(dataset, dataset.train_batch(self.chosen(dataset), seed=5), 16)
        for split in get_args(Split):
            for batch in dataset.evaluation(split, 0, 1, _BATCH):
                _check(dataset, batch, len(batch[1]))

    def test_loading_it_again_gives_the_same(self) -> None:
        """Every process of a trial loads it."""
        with _other_random_numbers(1):
            one = self.made()
        with _other_random_numbers(2):
            other = self.made()
        chosen = self.chosen(one)
        _assert_equal(one.train_batch(chosen, seed=5), other.train_batch(chosen, seed=5))
        for split in get_args(Split):
            for mine, theirs in zip(
                one.evaluation(split, 0, 1, _BATCH), other.evaluation(split, 0, 1, _BATCH), strict=True
            ):
                _assert_equal(mine, theirs)

    def test_a_batch_is_a_function_of_its_examples_and_its_seed(self) -> None:
        dataset = self.made()
        chosen = self.chosen(dataset)
        with _other_random_numbers(1):
            one = dataset.train_batch(chosen, seed=2**64 - 1)
        with _other_random_numbers(2):
            other = dataset.train_batch(chosen, seed=2**64 - 1)
        _assert_equal(one, other)

    def test_torchs_random_state_stays_as_it_is(self) -> None:
        """Initial weights and dropout are drawn from it."""
        before = torch.get_rng_state()
        dataset = self.made()
        dataset.train_batch(self.chosen(dataset), seed=5)
        for split in get_args(Split):
            next(iter(dataset.evaluation(split, 0, 1, _BATCH)))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_feed_is_batch_after_batch(self) -> None:
        dataset = self.made()
        draws = [(self.chosen(dataset)[start : start + 4], start) for start in (0, 4, 8)]
        fed = list(dataset.feed(iter(draws)))
        assert len(fed) == len(draws)
        for batch, (chosen, seed) in zip(fed, draws, strict=True):
            _assert_equal(batch, dataset.train_batch(chosen, seed))

    def test_every_example_is_evaluated_once_whoever_shares_them(self) -> None:
        dataset = self.made()
        for split, size in (("train", dataset.train_examples), ("test", dataset.test_examples)):
            inputs, labels = _evaluated(dataset, split, 0, 1)  # type: ignore[arg-type]
            assert len(labels) == size, f"{split}: {len(labels)} examples are evaluated, {size} are there"
            for part in range(3):
                own = _evaluated(dataset, split, part, 3)  # type: ignore[arg-type]
                _assert_equal(own, (inputs[part::3], labels[part::3]))

    def test_no_batch_of_an_evaluation_is_larger_than_was_asked(self) -> None:
        dataset = self.made()
        for split in get_args(Split):
            assert all(len(labels) <= 7 for _, labels in dataset.evaluation(split, 1, 5, 7))

    def test_on_another_device_it_is_the_same(self) -> None:
        dataset = self.made()
        there = dataset.to(torch.device("cpu"))
        chosen = self.chosen(dataset)
        _assert_equal(there.train_batch(chosen, seed=5), dataset.train_batch(chosen, seed=5))

    def test_the_files_that_it_lists_are_there(self) -> None:
        """By a digest of these lqray tells runs with other data."""
        files = data_files(self.options())
        if files is None:
            return
        assert files, "data_files lists no file"
        for file in files.values():
            assert file.is_file(), f"data_files lists {file}, which is not there"


@dataclass(frozen=True)
class _Kind:
    """Of data for a task. classes: at least so many. shape: in words; dimensions: how many numbers it has."""

    classes: int
    shape: str
    dimensions: tuple[int, ...]
    inputs: torch.dtype
    targets: torch.dtype


_KINDS = {
    "classification": _Kind(2, "(channels, height, width)", (3,), torch.float32, torch.int64),
    "language_modelling": _Kind(2, "(context,)", (1,), torch.int64, torch.int64),
    "regression": _Kind(1, "(dimension,), or that of an image", (1, 3), torch.float32, torch.float32),
}


def _kind(dataset: Dataset) -> _Kind:
    task = getattr(dataset, "task", "classification")
    assert task in _KINDS, f"a task is one of {', '.join(_KINDS)}; found {task!r}"
    return _KINDS[task]


def _check(dataset: Dataset, batch: Batch, count: int) -> None:
    inputs, labels = batch
    kind = _kind(dataset)
    assert inputs.shape == (count, *dataset.shape), f"inputs of the shape {tuple(inputs.shape)} in {dataset.shape}"
    assert (inputs.dtype, labels.dtype) == (kind.inputs, kind.targets)
    assert inputs.isfinite().all()
    assert labels.shape == (inputs.shape if inputs.dtype == torch.int64 else (count,))
    if kind.targets != torch.int64:
        assert labels.isfinite().all()
        return
    for tensor in (labels, inputs) if inputs.dtype == torch.int64 else (labels,):
        low, high = int(tensor.min()), int(tensor.max())
        assert low >= 0, f"found the label {low}"
        assert high < dataset.classes, f"found the label {high} of {dataset.classes}, 0 to {dataset.classes - 1}"


def _evaluated(dataset: Dataset, split: Split, part: int, parts: int) -> Batch:
    batches = list(dataset.evaluation(split, part, parts, _BATCH))
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([labels for _, labels in batches])


def _assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one[1], other[1]), "the labels differ"
    assert torch.equal(one[0], other[0]), "the inputs differ"


@contextmanager
def _other_random_numbers(seed: int) -> Iterator[None]:
    """Within it, the global generators of torch, numpy and Python stand elsewhere than they did."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
