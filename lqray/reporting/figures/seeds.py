"""From the runs of a group to a mean and a 95% interval.

Runs are compared at the steps that they share. Where these are less than half of what the shortest of them has (runs
that were measured at different intervals), at the steps of all of them, linearly between a run's own points, and only
where every run has been: nothing is drawn beyond the end of the first that ends. A step at which a run is not finite is
a gap. The interval is that of `intervals`; one run has none. For logarithmic axes both are of the logarithms: the
geometric mean, whose interval does not reach below zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lqray.reporting.histories import History
from lqray.reporting.intervals import Kind, interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """x, mean, low, high: (n,) each, of `runs` runs; NaN is a gap. cut: some of them went on beyond the last x."""

    x: Array
    mean: Array
    low: Array
    high: Array
    runs: int
    cut: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def at(self, x: Array) -> Band:
        """The same numbers at other places, (n,)."""
        return Band(x, self.mean, self.low, self.high, self.runs, self.cut)


def across(histories: Sequence[History], kind: Kind = "any", logarithmic: bool = False) -> Band:
    """Over the runs of a group; empty where they have no step in common. kind: of the metric."""
    used = [one for one in histories if len(one)]
    if not used:
        nothing = np.zeros(0)
        return Band(nothing, nothing, nothing, nothing, 0)
    shared = functools.reduce(np.intersect1d, [one.steps for one in used])
    if 2 * len(shared) >= min(len(one) for one in used):
        rows = np.stack([one.values[np.searchsorted(one.steps, shared)] for one in used])
        grid = shared
    else:
        first, last = max(one.steps[0] for one in used), min(one.steps[-1] for one in used)
        union = np.unique(np.concatenate([one.steps for one in used]))
        grid = union[(union >= first) & (union <= last)]
        rows = np.stack([np.interp(grid, one.steps, one.values) for one in used])
    mean, low, high = interval(rows, kind, logarithmic)
    cut = len(grid) > 0 and any(one.steps[-1] > grid[-1] for one in used)
    return Band(grid.astype(np.float64), mean, low, high, len(used), cut)
