"""One label for each example: cross entropy, and the share of examples whose largest output is that of their label."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from lqray.experiment.options.task import ClassificationOptions
from lqray.training.dataset import Dataset


@dataclass(frozen=True)
class Classification:
    """outputs: logits (B, classes). targets: labels, int64 (B,)."""

    classes: int
    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `lqray.training.tasks.Task.loss`."""
        return cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def totals(self, outputs: Tensor, targets: Tensor) -> list[Tensor | int]:
        """See `lqray.training.tasks.Task.totals`. An output with a NaN is no answer, and not correct."""
        correct = (outputs.argmax(dim=1) == targets) & ~outputs.isnan().any(dim=1)
        return [targets.numel(), cross_entropy(outputs, targets, reduction="sum"), correct.sum()]

    def metrics(self, totals: list[float]) -> dict[str, float]:
        """See `lqray.training.tasks.Task.metrics`: `accuracy` in [0, 1]."""
        examples, loss, correct = totals
        return {"loss": loss / examples, "accuracy": correct / examples}

    def outputs_per_example(self) -> int:
        """See `lqray.training.tasks.Task.outputs_per_example`."""
        return self.classes


def build(options: ClassificationOptions, dataset: Dataset) -> Classification:
    """Of the data's classes."""
    return Classification(dataset.classes, options.label_smoothing)
