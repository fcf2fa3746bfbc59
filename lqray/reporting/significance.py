"""Which groups lead: none is significantly better.

Each group is tested against that of the best mean (as Hsu 1981, Simultaneous confidence intervals for all distances
from the best, Annals of Statistics 9, compares with it): by the paired t-test where every run of the smaller group has
its one counterpart in the other, of equal seed and of equal other parameters that tell runs of a group apart, else by
Welch's. The p-values are corrected for their number by Holm (1979, A simple sequentially rejective multiple test
procedure, Scandinavian Journal of Statistics 6). Groups of fewer than two finite values take no part: nothing is known
of how they vary.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from lqray.reporting.pairs import paired_p

LEVEL = 0.05
Sample = Sequence[tuple[Hashable, float]]
"""Finite values of a group's runs, each with what tells the run from others of its group: its seed, and more."""


def leading(samples: Sequence[Sample], higher: bool) -> frozenset[int]:
    """Indices of the groups that none is significantly better than; none of all that take part, if that is all. higher:
    whether more is better."""
    part = [index for index, sample in enumerate(samples) if len(sample) > 1]
    if len(part) < 2:
        return frozenset()
    means = {index: float(np.mean([value for _, value in samples[index]])) for index in part}
    best = (max if higher else min)(part, key=lambda index: means[index])
    p_values = {index: _p(samples[index], samples[best]) for index in part if index != best}
    found = frozenset(part) - _rejected(p_values)
    return frozenset() if len(found) == len(part) else found


def _rejected(p_values: Mapping[int, float]) -> set[int]:
    """By Holm; what is NaN is no test that says anything, and the last."""
    ordered = sorted(p_values, key=lambda index: (math.isnan(p_values[index]), p_values[index]))
    rejected: set[int] = set()
    for place, index in enumerate(ordered):
        if not p_values[index] <= LEVEL / (len(ordered) - place):
            break
        rejected.add(index)
    return rejected


def _p(one: Sample, other: Sample) -> float:
    first, second = dict(one), dict(other)
    shared = first.keys() & second.keys()
    alone = len(first) == len(one) and len(second) == len(other)
    if alone and len(shared) > 1 and len(shared) == min(len(first), len(second)):
        pairs = [(first[key], second[key]) for key in shared]
        found = paired_p(pairs)
        if not math.isnan(found) or all(mine == its for mine, its in pairs):
            return found  # of a gap that does not vary, what follows has something to say
    return _welch([value for _, value in one], [value for _, value in other])


def _welch(one: Sequence[float], other: Sequence[float]) -> float:
    """NaN where neither varies: there is nothing to test against."""
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return math.nan
    from scipy.stats import ttest_ind

    return float(ttest_ind(one, other, equal_var=False).pvalue)
