"""Where the solvers of the research code behind the paper stop (Faghri et al. 2020): levels that are not yet the best.

ALQ descends from the distribution's quantiles, from uniform and from exponential levels, one level after the other, ten
steps of rate 1 each, thirty times over all of them. Where the gradient is small beside the curvature's reach it has not
arrived by then; where the curvature exceeds 2, such steps do not settle at all. AMQ takes forty steps of rate 0.7 from
seven multipliers and chooses among them by a cost that leaves out the cell around zero. With normal buckets of 8192 and
3 bits that is 1.8 and 2.2 times the least error, and what the published runs had.

The gradient is the closed one, where the research code takes differences over a thousandth of the interval.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lqray.quantization.distribution import TruncatedNormalMixture
from lqray.quantization.levels import Levels, exponential_levels, uniform_levels

_SWEEPS = 30
_STEPS = 10
_MARGIN = 1e-3
_MULTIPLIERS = (0.1, 0.2, 0.3, 0.4, 0.8, 0.9)
_MULTIPLIER_STEPS = 40
_MULTIPLIER_RATE = 0.7


def descended_levels(distribution: TruncatedNormalMixture, current: Levels) -> Iterator[Levels]:
    """Where ALQ's descent from each of its three starts stops: `current.size` levels, strictly increasing."""
    bits = current.size.bit_length() - 1
    quantiles = distribution.quantile(np.linspace(0.0, 1.0, current.size))
    quantiles[0], quantiles[-1] = -1.0, 1.0
    for start in (quantiles, uniform_levels(bits), exponential_levels(bits)):
        if np.all(np.diff(start) > 0):
            yield _descended(distribution, start)


def _descended(distribution: TruncatedNormalMixture, start: Levels) -> Levels:
    levels = start.copy()
    for _ in range(_SWEEPS):
        for j in range(1, levels.size - 1):
            below, above = levels[j - 1], levels[j + 1]
            margin = _MARGIN * (above - below)
            for _ in range(_STEPS):
                moments = distribution.moments(levels[j - 1 : j + 2])
                slope = moments.first[0] - ((above - levels[j]) * moments.mass[1] - moments.first[1])
                # A step that does not settle would leave the interval, where the cost means nothing.
                levels[j] = min(max(levels[j] - slope, below + margin), above - margin)
    return levels


def descended_multiplier(distribution: TruncatedNormalMixture, current: Levels) -> Iterator[Levels]:
    """The exponential levels that AMQ's descents choose; none where all of them leave (0, 1)."""
    count = current.size // 2
    starts = (*_MULTIPLIERS[:4], float(current[-2]), *_MULTIPLIERS[4:])
    found = [p for p in (_descended_multiplier(distribution, start, count) for start in starts) if 0.0 < p < 1.0]

    def without_the_middle(p: float) -> float:
        positive = _positive(p, count)
        return distribution.expected_variance(positive) if np.all(np.diff(positive) > 0) else np.inf

    if found:
        yield exponential_levels(current.size.bit_length() - 1, min(found, key=without_the_middle))


def _descended_multiplier(distribution: TruncatedNormalMixture, p: float, count: int) -> float:
    powers = np.arange(count - 1, 0, -1, dtype=np.float64)
    for _ in range(_MULTIPLIER_STEPS):
        if not 0.0 < p < 1.0:
            break
        edges = np.concatenate([[0.0], _positive(p, count)])
        moments = distribution.moments(edges)
        rising = np.diff(edges) * moments.mass - moments.first
        slopes = moments.first[:-1] - rising[1:]
        # Below the smallest level p^s lie coordinates down to -p^s, of which this is the half from 0 on.
        slopes[0] = 2.0 * edges[1] * moments.mass[0] - rising[1]
        p -= _MULTIPLIER_RATE * float(slopes @ (powers * p ** (powers - 1.0)))
    return p


def _positive(p: float, count: int) -> Levels:
    return np.asarray(p ** np.arange(count - 1, -1, -1, dtype=np.float64))
