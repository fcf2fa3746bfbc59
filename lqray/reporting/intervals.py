"""95% intervals of means over runs, for tables and figures: none of them leaves the range of its metric.

Student's t, mean +- t s / sqrt(n). Of shares of examples it is taken on the logit: logit(mean) +- t s / (sqrt(n) mean
(1 - mean)), by the delta method, and back, the logit interval of a proportion (Brown, Cai and DasGupta 2001, Interval
estimation for a binomial proportion, Statistical Science 16) with the variance over runs in place of the binomial one;
it stays within 0 and 1, and is Student's t where that is short. Where all runs have one value, such as an accuracy of
1, there is no spread, and the interval is that value. Of what cannot be negative, the part of Student's t below 0 is
cut off: no possible mean is lost. Values that are beyond the range that a metric's name promises are of another kind
of metric, and have plain Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lqray.experiment.headline import is_nonnegative, is_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Kind = Literal["any", "nonnegative", "share"]
_LEVEL = 0.975


@dataclass(frozen=True)
class Spread:
    """One number of each run of a group. values: by run id; runs that have none are left out, what is not finite is
    kept.

    mean, std (ddof = 1), low and high (95% interval of the mean, see `interval`) are of those that are finite; NaN
    where there are too few.
    """

    values: Mapping[str, float]
    mean: float
    std: float
    low: float
    high: float

    @property
    def count(self) -> int:
        """Runs that entered."""
        return sum(math.isfinite(value) for value in self.values.values())

    @property
    def not_finite(self) -> int:
        """Runs whose number is NaN or infinite."""
        return len(self.values) - self.count

    @property
    def representative(self) -> float:
        """The mean; where no run's number is finite, what they are: an infinity if they agree in it, or NaN."""
        if self.count or not self.values:
            return self.mean
        first = next(iter(self.values.values()))
        return first if all(value == first for value in self.values.values()) else math.nan


def kind_of(metric: str) -> Kind:
    """In what range the values of a metric are."""
    return "share" if is_share(metric) else "nonnegative" if is_nonnegative(metric) else "any"


def spread(values: Mapping[str, float], kind: Kind = "any") -> Spread:
    """Statistics of one number a run."""
    usable = np.array([value for value in values.values() if math.isfinite(value)], np.float64)
    if not len(usable):
        return Spread(values, math.nan, math.nan, math.nan, math.nan)
    mean, low, high = (float(part[0]) for part in interval(usable[:, None], kind))
    std = float(usable.std(ddof=1)) if len(usable) > 1 else math.nan
    return Spread(values, mean, std, low, high)


def interval(rows: Array, kind: Kind = "any", logarithmic: bool = False) -> tuple[Array, Array, Array]:
    """Mean, and the ends of its 95% interval, of rows (runs, n): (n,) each; NaN where a run is not finite (logarithmic:
    or not positive), and the ends also with one run. logarithmic: both of the logarithms, and back."""
    if logarithmic:
        mean, low, high = interval(np.log(np.where(rows > 0, rows, np.nan)))
        return np.exp(mean), np.exp(low), np.exp(high)
    clean = np.where(np.isfinite(rows), rows, np.nan)
    mean = clean.mean(axis=0)
    count = len(rows)
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    from scipy.special import expit, logit, stdtrit

    half = float(stdtrit(count - 1, _LEVEL)) * clean.std(axis=0, ddof=1) / math.sqrt(count)
    low, high = mean - half, mean + half
    if kind == "nonnegative":
        low = np.where((clean >= 0).all(axis=0), np.maximum(low, 0), low)
    if kind == "share":
        inside = ((clean >= 0) & (clean <= 1)).all(axis=0) & (half > 0) & (mean > 0) & (mean < 1)
        middle = np.where(inside, mean, 0.5)
        away = half / (middle * (1 - middle))
        low = np.where(inside, expit(logit(middle) - away), low)
        high = np.where(inside, expit(logit(middle) + away), high)
    return mean, low, high
