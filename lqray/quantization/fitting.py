"""How levels follow from what was observed of the gradients: what to observe, what of it to keep, what to solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lqray.quantization.histogram import Histogram, histogram
from lqray.quantization.levels import Levels
from lqray.quantization.solvers import Method as Objective
from lqray.quantization.solvers import solve_levels
from lqray.quantization.statistics import BucketStatistics, bucket_statistics

Array = NDArray[np.float64]


class Statistics(Protocol):
    """What is observed of gradients, as rows of four numbers that ranks exchange."""

    @classmethod
    def empty(cls) -> Self:
        """Of no gradient."""

    @classmethod
    def from_table(cls, table: Array) -> Self:
        """Those that a table (rows, 4), float64, stands for."""

    def table(self) -> Array:
        """(rows, 4), float64, of which `from_table` makes the same again."""

    @classmethod
    def merge(cls, parts: Sequence[Any]) -> Self:
        """Of all that the parts have observed."""


class Distribution(Protocol):
    """Of normalized coordinates."""

    def expected_variance(self, levels: Levels, /) -> float: ...


@dataclass(frozen=True)
class Fit:
    """statistics: class of what is observed. observe: (gradient (n,), norm, options) -> statistics. keep: statistics ->
    the least of them that `levels` needs. distribution: (statistics, options) -> what the levels are fitted to, None
    where there is nothing to fit to. levels: (distribution, current levels, options) -> levels (L,), no worse than the
    current ones under it."""

    statistics: type[Any]
    observe: Callable[[Tensor, str, Any], Any]
    keep: Callable[[Any, Any], Any]
    distribution: Callable[[Any, Any], Distribution | None]
    levels: Callable[[Any, Levels, Any], Levels]


def mixture_fit(objective: Objective) -> Fit:
    """Levels under the norm-weighted mixture of the buckets of largest norm."""
    return Fit(
        BucketStatistics,
        _observe_buckets,
        lambda seen, options: seen.largest(options.components),
        lambda statistics, options: statistics.mixture(options.components, options.weighting),
        partial(_solve, objective),
    )


def normless_fit(objective: Objective) -> Fit:
    """Levels under one truncated normal, pooled over all buckets whatever their norm."""
    return Fit(
        BucketStatistics,
        _observe_buckets,
        lambda seen, options: seen.pooled(),
        lambda statistics, options: statistics.normal(),
        partial(_solve, objective),
    )


def histogram_fit() -> Fit:
    """Levels under the empirical distribution itself."""
    return Fit(
        Histogram,
        lambda gradient, norm, options: histogram(gradient, options.bucket_size, norm, options.weighting),
        lambda seen, options: seen,
        lambda statistics, options: statistics if len(statistics.table()) else None,
        lambda statistics, current, options: statistics.optimal_levels(options.bits, current),
    )


def _observe_buckets(gradient: Tensor, norm: str, options: Any) -> BucketStatistics:
    """A short last bucket is seen as it is, under l2 also where it is encoded under rms: docs/guide/methods.md."""
    return bucket_statistics(gradient, options.bucket_size, "l2" if norm == "rms" else norm)


def _solve(objective: Objective, distribution: Any, current: Levels, options: Any) -> Levels:
    choices = {key: getattr(options, key) for key in ("solver", "symmetric") if hasattr(options, key)}
    return solve_levels(distribution, options.bits, objective, current, **choices)
