"""What a model is trained to do, one class per name."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from lqray.experiment.options.section import Variant, Word


class TaskOptions(Variant):
    """A task: a module of training/tasks, which has the loss and the metrics of the test set (`METRICS`)."""

    METRICS: ClassVar[tuple[str, ...]] = ()
    name: str = "classification"
    """By default that of the data: language_modelling of text, regression of linear, else classification."""
    headline: Word | None = Field(default=None, json_schema_extra={"identity": False})
    """The metric by which trials are judged: best checkpoint, early stopping, reports and figures. test/NAME of one of
    the task's metrics or of `metrics`; null: the task's own, its accuracy or its loss."""
    higher_is_better: bool | None = Field(default=None, json_schema_extra={"identity": False})
    """Of `headline`; null: of an accuracy. A metric of your own wants to be told."""


class ClassificationOptions(TaskOptions):
    """Cross entropy of one label for each example."""

    METRICS = ("loss", "accuracy")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label's weight that is spread evenly over all of them, in the training loss alone (Szegedy et al.
    2016)."""


class LanguageModellingOptions(TaskOptions):
    """Cross entropy of the next token at every position, in nats."""

    METRICS = ("loss", "perplexity", "bits_per_byte")


class RegressionOptions(TaskOptions):
    """Half the squared error of one number for each example."""

    METRICS = ("loss", "excess_loss")


TASK: dict[str, type[TaskOptions]] = {
    "classification": ClassificationOptions,
    "language_modelling": LanguageModellingOptions,
    "regression": RegressionOptions,
}
