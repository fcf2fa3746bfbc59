"""How long to train, in what steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lqray.experiment.options.section import MOST_EXAMPLES, MOST_ITERATIONS, SMALLEST, Iterations, Section


class ScheduleOptions(Section):
    """How long to train, in what steps."""

    iterations: int | None = Field(default=None, ge=1, le=MOST_ITERATIONS)
    """Optimizer steps."""
    epochs: int | None = Field(default=None, ge=1, le=MOST_ITERATIONS)
    """Instead of `iterations`: passes over the training set. Then `decay_at`, `decay_every` and `warm_up` count epochs,
    too."""
    batch_size: int = Field(ge=1, le=MOST_EXAMPLES)
    """Examples per worker and step: a step sees workers * batch_size of them."""
    accumulate: int = Field(default=1, ge=1, le=MOST_EXAMPLES)
    """Equal pieces of a worker's batch, computed one after the other, whose gradients are averaged: a step takes the
    memory of batch_size / accumulate examples. It divides batch_size."""
    decay_at: Iterations = ()
    """Iterations at which the learning rate is multiplied by decay_rate."""
    decay_rate: float = Field(default=0.1, ge=SMALLEST, le=1)
    """What the learning rate is multiplied by at a decay of `step` and `exponential`."""
    decay: Literal["step", "exponential", "cosine", "wsd"] = "step"
    """step: the learning rate drops at `decay_at` and every `decay_every`; exponential: it falls evenly, by decay_rate
    every `decay_every` iterations (0: over the run); cosine: to final_rate of it at the end, by half a cosine; wsd
    (warm-up, stable, decay): it stays, and falls linearly to final_rate of it over the last `cooldown` of the run."""
    final_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate that cosine and wsd reach at the end of the run."""
    cooldown: float = Field(default=0.2, ge=SMALLEST, le=1)
    """Share of the run, its last, over which wsd lowers the learning rate."""
    decay_every: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations from one decay to the next; 0: none but `decay_at`."""
    warm_up: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations over which the learning rate rises linearly first. cosine counts from the first iteration of the run,
    within the warm-up, too."""
    warm_up_share: float = Field(default=0.0, ge=0, lt=1)
    """Instead of `warm_up`: the share of the run, rounded to iterations, over which the learning rate rises linearly
    first. cosine then counts from the end of the warm-up."""
    evaluate_every: int = Field(default=100, ge=1, le=MOST_ITERATIONS)
    """Iterations between evaluations on the test set; the last iteration is always followed by one."""
    evaluate_train: bool = False
    """Evaluate on the training set, too."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite gradient does: it stops the trial, or its step is left out on all ranks alike."""

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleOptions:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("exactly one of iterations and epochs")
        return self

    @model_validator(mode="after")
    def _one_warm_up(self) -> ScheduleOptions:
        if self.warm_up and self.warm_up_share:
            raise ValueError(
                f"at most one of warm_up and warm_up_share above 0; found {self.warm_up} and {self.warm_up_share:g}"
            )
        if self.decay == "wsd" and self.warm_up_share + self.cooldown > 1 + 1e-9:
            raise ValueError(
                f"warm_up_share and cooldown of at most 1 together; found {self.warm_up_share:g} and {self.cooldown:g}"
            )
        return self

    @model_validator(mode="after")
    def _pieces_are_equal(self) -> ScheduleOptions:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate, the pieces of a worker's batch, as a divisor of batch_size; found {self.accumulate} and "
                f"batch_size {self.batch_size}"
            )
        return self
