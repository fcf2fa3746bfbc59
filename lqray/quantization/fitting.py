"""How levels follow from what was observed of the gradients: what to observe, what of it to keep, what to solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    def empty(cls) -> Self: ...
    @classmethod
    def from_table(cls, table: Array) -> Self: ...
    def table(self) -> Array: ...
    @classmethod
    def merge(cls, parts: Sequence[Any]) -> Self: ...


@dataclass(frozen=True)
class Fit:
    """statistics: class of what is observed. observe: (gradient (n,), norm, options) -> statistics. keep: statistics ->
    the least of them that `levels` needs. levels: (statistics, current levels, options) -> levels (L,), no worse than
    the current ones under the statistics, and the current ones where there is nothing to fit to."""

    statistics: type[Any]
    observe: Callable[[Tensor, str, Any], Any]
    keep: Callable[[Any, Any], Any]
    levels: Callable[[Any, Levels, Any], Levels]


def mixture_fit(objective: Objective) -> Fit:
    """Levels under the norm-weighted mixture of the buckets of largest norm."""

    def levels(statistics: BucketStatistics, current: Levels, options: Any) -> Levels:
        distribution = statistics.mixture(options.components, options.weighting)
        return current if distribution is None else _solve(distribution, objective, current, options)

    return Fit(BucketStatistics, _observe_buckets, lambda seen, options: seen.largest(options.components), levels)


def normless_fit(objective: Objective) -> Fit:
    """Levels under one truncated normal, pooled over all buckets whatever their norm."""

    def levels(statistics: BucketStatistics, current: Levels, options: Any) -> Levels:
        distribution = statistics.normal()
        return current if distribution is None else _solve(distribution, objective, current, options)

    return Fit(BucketStatistics, _observe_buckets, lambda seen, options: seen.pooled(), levels)


def histogram_fit() -> Fit:
    """Levels under the empirical distribution itself."""
    return Fit(
        Histogram,
        lambda gradient, norm, options: histogram(gradient, options.bucket_size, norm, options.weighting),
        lambda seen, options: seen,
        lambda statistics, current, options: statistics.optimal_levels(options.bits, current),
    )


def _observe_buckets(gradient: Tensor, norm: str, options: Any) -> BucketStatistics:
    return bucket_statistics(gradient, options.bucket_size, norm)


def _solve(distribution: Any, objective: Objective, current: Levels, options: Any) -> Levels:
    choices = {key: getattr(options, key) for key in ("solver", "symmetric") if hasattr(options, key)}
    return solve_levels(distribution, options.bits, objective, current, **choices)
