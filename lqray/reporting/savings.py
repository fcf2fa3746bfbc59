"""What a method saves: how many times less a run costs than its counterpart of the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lqray.reporting.intervals import spread
from lqray.reporting.pairs import Pair, paired_p

IN_ALL, TO_TARGET = ("bytes_sent", "seconds_per_step"), ("bytes_to_target", "seconds_to_target")
SAVED = (*IN_ALL, *TO_TARGET)
"""Of which costs; bytes are those sent by a process."""


@dataclass(frozen=True)
class Saving:
    """Ratios of the baseline's cost to the own, in pairs of runs of equal seed. values: by own run's id.

    mean: the geometric one. low, high: its 95% interval, by Student's t on the logarithms. p_value: of the paired
    t-test on the logarithms. NaN with too few pairs. pairs: (run id, the baseline's), that entered. of: pairs that
    there are: of the others one or both have no such cost, or never reached the target.
    """

    values: Mapping[str, float]
    mean: float
    low: float
    high: float
    p_value: float
    pairs: tuple[tuple[str, str], ...]
    of: int


def saving(pairs: Sequence[Pair], cost: Mapping[str, float]) -> Saving | None:
    """cost: by run id, of runs that have it; what is not positive and finite is none. None without a pair that has."""
    both, ids = [], []
    for one, other in pairs:
        mine, its = cost.get(one.run_id, math.nan), cost.get(other.run_id, math.nan)
        if 0 < mine < math.inf and 0 < its < math.inf:
            both.append((math.log(its), math.log(mine)))
            ids.append((one.run_id, other.run_id))
    if not ids:
        return None
    logs = spread({run_id: its - mine for (run_id, _), (its, mine) in zip(ids, both, strict=True)})
    ratios = {run_id: math.exp(value) for run_id, value in logs.values.items()}
    mean, low, high = (_exp(one) for one in (logs.mean, logs.low, logs.high))
    return Saving(ratios, mean, low, high, paired_p(both), tuple(ids), len(pairs))


def _exp(value: float) -> float:
    """Beyond what a float can be, infinity: of two pairs that differ much, intervals are very wide."""
    return math.exp(value) if not value > 700 else math.inf
