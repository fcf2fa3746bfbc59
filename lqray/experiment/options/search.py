"""Trials that are drawn, and early stopping."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lqray.experiment.headline import Headline
from lqray.experiment.options.budget import with_pairs
from lqray.experiment.options.section import (
    LARGEST,
    MOST_DRAWS,
    MOST_ITERATIONS,
    MOST_OF_A_LIST,
    MOST_SEED,
    MOST_WORKERS,
    Section,
    Word,
)

HEADLINE = "headline"
"""In the place of a metric: that by which trials are judged."""


class EarlyStopping(Section):
    """ASHA (Li et al. 2020): at rungs of grace_period * reduction_factor**k iterations only the best 1/reduction_factor
    of the trials go on."""

    metric: Word = Field(default=HEADLINE, json_schema_extra={"founding": "test/accuracy"})
    """Any reported metric; headline: that by which trials are judged (`task.headline`)."""
    mode: Literal["max", "min"] | None = Field(default=None, json_schema_extra={"founding": "max"})
    """max: more of the metric is better; null: what is better of the headline, of other metrics max."""
    grace_period: int = Field(default=1, ge=1, le=MOST_ITERATIONS)
    """Iterations before a trial can be stopped."""
    reduction_factor: float = Field(default=4, ge=1.01, le=MOST_WORKERS)
    """From one rung to the next: so many times as many iterations, for one of so many trials."""
    brackets: int = Field(default=1, ge=1, le=100)
    """Sets of rungs that trials are dealt to; the first rung of each further set is reduction_factor times as late."""


class Domain(Section):
    """Values that `search` draws a key from: exactly one of the four."""

    choice: Annotated[tuple[Any, ...] | None, Field(strict=False, min_length=1, max_length=MOST_OF_A_LIST)] = None
    """Any of these, equally likely."""
    uniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    """Between low and high."""
    log_uniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    """Between low and high, both above 0, its logarithm uniformly."""
    integer: Annotated[tuple[int, int] | None, Field(strict=False)] = None
    """From low to high, both included."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Domain:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "exactly one of choice: [...], uniform: [low, high], log_uniform: [low, high], integer: [low, high]"
            )
        bounds = self.uniform or self.log_uniform or self.integer
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]}: [low, high] with low below high")
        if bounds and not max(map(abs, bounds)) <= LARGEST:
            raise ValueError(f"{given[0]}: [low, high] between {-LARGEST:g} and {LARGEST:g}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform: [low, high] with low above 0")
        return self


class Search(Section):
    """What `search:` adds to a sweep: keys drawn from ranges, and early stopping. Not part of a trial."""

    sampler: Literal["random", "grid", "optuna"] = "random"
    """random: every combination of the sweep takes the same `samples` draws, so that methods compare on equal terms;
    grid: all combinations of choices; optuna: without a sweep, each draw made from the results so far (Optuna's TPE,
    through Ray Tune; `pip install optuna`)."""
    samples: int = Field(default=10, ge=1, le=MOST_DRAWS)
    """Draws of the random sampler, or trials that Optuna suggests."""
    metric: Word = Field(default=HEADLINE, json_schema_extra={"founding": "test/accuracy"})
    """What Optuna optimizes: any metric of the final evaluation; headline: that by which trials are judged."""
    mode: Literal["max", "min"] | None = Field(default=None, json_schema_extra={"founding": "max"})
    """As of early_stopping."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Of the draws, which are a function of it, their number and the key."""
    each: tuple[str, ...] = ()
    """Dotted keys of the sweep, one or a list: each of their values is tuned with as many trials as any other, by the
    same draws."""
    trials: int | None = Field(default=None, ge=1, le=MOST_DRAWS)
    """With each: how many trials each of these groups has, in the place of `samples`, its seeds counted, too."""
    space: dict[str, Domain] = {}  # noqa: RUF012  # pydantic copies it
    """Dotted keys of a trial, and where their values come from."""
    early_stopping: EarlyStopping | None = None
    """Stop the worst trials early; null: every trial runs to its end."""

    @field_validator("each", mode="before")
    @classmethod
    def _one_or_a_list(cls, each: Any) -> Any:
        return (each,) if isinstance(each, str) else tuple(each) if isinstance(each, list) else each

    @field_validator("space")
    @classmethod
    def _choices_of_mappings(cls, space: dict[str, Domain]) -> dict[str, Domain]:
        return {
            key: domain.model_copy(update={"choice": tuple(with_pairs(key, each) for each in domain.choice)})
            if domain.choice
            else domain
            for key, domain in space.items()
        }

    def judged_by(self, headline: Headline) -> Search:
        """The same, with every metric and mode that was left open."""
        stopping = self.early_stopping
        judged = stopping and stopping.model_copy(update=_judged(stopping, headline))
        return self.model_copy(update={**_judged(self, headline), "early_stopping": judged})

    @property
    def adaptive(self) -> bool:
        """Whether draws depend on results and are not known ahead."""
        return self.sampler == "optuna" and bool(self.space)

    @model_validator(mode="after")
    def _something_to_do(self) -> Search:
        if not self.space and self.early_stopping is None:
            raise ValueError("a space to search, or early_stopping, or both")
        if self.sampler == "grid" and any(domain.choice is None for domain in self.space.values()):
            raise ValueError("with sampler: grid every key of the space is a choice: [...]")
        if self.trials is not None and (not self.each or "samples" in self.model_fields_set):
            raise ValueError("trials beside each, in the place of samples")
        return self


def _judged(one: Search | EarlyStopping, headline: Headline) -> dict[str, str]:
    metric = headline.metric if one.metric == HEADLINE else one.metric
    falls = metric == headline.metric and not headline.higher
    return {"metric": metric, "mode": one.mode or ("min" if falls else "max")}
