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
    """Pieces that a worker's batch is computed in, one after the other, to save memory; batch_size is a multiple."""
    decay_at: Iterations = ()
    """Iterations at which the learning rate is multiplied by decay_rate."""
    decay_rate: float = Field(default=0.1, ge=SMALLEST, le=1)
    decay: Literal["step", "exponential", "cosine"] = "step"
    """step: the learning rate drops at `decay_at` and every `decay_every`; exponential: it falls evenly, by decay_rate
    every `decay_every` iterations (0: over the run); cosine: to 0 at the end, by half a cosine."""
    decay_every: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations from one decay to the next; 0: none but `decay_at`."""
    warm_up: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations over which the learning rate rises linearly first."""
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
