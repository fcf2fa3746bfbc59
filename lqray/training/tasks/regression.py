"""A number for each example: half the squared error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lqray.experiment.options.task import RegressionOptions
from lqray.training.dataset import Dataset


@dataclass(frozen=True)
class Regression:
    """outputs: (B, 1). targets: float32 (B,). optimum: the loss of the best model; None where it is not known."""

    optimum: float | None = None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `lqray.training.tasks.Task.loss`."""
        return (outputs.view_as(targets) - targets).square().mean() / 2

    def totals(self, outputs: Tensor, targets: Tensor) -> list[Tensor | int]:
        """See `lqray.training.tasks.Task.totals`."""
        return [targets.numel(), (outputs.view_as(targets) - targets).double().square().sum() / 2]

    def metrics(self, totals: list[float]) -> dict[str, float]:
        """See `lqray.training.tasks.Task.metrics`: `excess_loss` is what lies above the optimum."""
        examples, errors = totals
        loss = errors / examples
        return {"loss": loss} | ({} if self.optimum is None else {"excess_loss": loss - self.optimum})

    def outputs_per_example(self) -> int:
        """See `lqray.training.tasks.Task.outputs_per_example`."""
        return 1


def build(options: RegressionOptions, dataset: Dataset) -> Regression:
    """Of the data's optimum."""
    return Regression(getattr(dataset, "optimum", None))
