"""What a model is trained to do, a module for each task: its loss, and the metrics of a test set. A module defines
`build(options, dataset) -> Task`; which of the metrics trials are judged by is `lqray.experiment.headline`'s."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from torch import Tensor

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.task import TaskOptions
from lqray.training.dataset import Dataset


class Task(Protocol):
    """Of outputs, float32 (B, ...), of a model, and targets (B, ...)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training makes smaller: the mean over the targets, float32 ()."""
        ...

    def totals(self, outputs: Tensor, targets: Tensor) -> list[Tensor | int]:
        """Of a batch of a test set, sums () over its targets, which are added up over all batches and ranks. The first
        is the number of targets."""
        ...

    def metrics(self, totals: list[float]) -> dict[str, float]:
        """By name, from the sums over a whole split: the mean `loss`, and what else there is."""
        ...

    def outputs_per_example(self) -> int:
        """float32 numbers that a model gives for one example."""
        ...


def build_task(options: TaskOptions, dataset: Dataset) -> Task:
    """The task of a trial. Raises UnfitTrialError for data of another task."""
    of_data = getattr(dataset, "task", None)
    if of_data is not None and of_data != options.name:
        raise UnfitTrialError(
            f"task.name: found {options.name}, and data for {of_data}; allowed: {of_data}, or other data"
        )
    module: Any = importlib.import_module(f"{__name__}.{options.name}")
    task: Task = module.build(options, dataset)
    return task
