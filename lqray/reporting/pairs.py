"""Runs beside those of a baseline: which counterpart a run has, and tests of what differs between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lqray.experiment.errors import did_you_mean
from lqray.reporting.intervals import Spread, spread
from lqray.reporting.methods import in_order
from lqray.reporting.selection import METHOD, SEED, TRIAL, UnknownKeyError
from lqray.store.runs import Run

DEFAULT_BASELINES = ("bf16", "fp16", "full_precision")
_ROUNDING = 1e-12
Pair = tuple[Run, Run]
"""A run, and its counterpart of the baseline."""


@dataclass(frozen=True)
class Difference:
    """From a baseline, in pairs of runs of equal seed: mean of the differences, its 95% interval, and the p-value of
    the paired t-test (NaN with fewer than two pairs). pairs: (run id, the baseline's)."""

    spread: Spread
    p_value: float
    pairs: tuple[tuple[str, str], ...]


class Counterparts:
    """Of runs, those of the baseline's method of equal seed, and equal in all else that runs vary in and the baseline's
    have. What belongs to an exchange (`exchange.every`) tells them apart only where the baseline's own runs vary in it:
    a method that sends every 8 steps has the baseline that sends at each of them."""

    def __init__(self, records: Sequence[Run], keys: Sequence[str], method: str) -> None:
        runs = [one for one in records if one.method == method and one.status == "FINISHED"]
        self._keys = [*(key for key in keys if _told_apart(key, runs)), SEED]
        self._method = method
        self._runs: dict[tuple[str | None, ...], list[Run]] = {}
        for one in runs:
            self._runs.setdefault(self._place(one), []).append(one)

    def pairs(self, runs: Iterable[Run]) -> list[Pair]:
        """Of runs that have one counterpart; none of the baseline's own."""
        found = [(one, self._runs.get(self._place(one), [])) for one in runs if one.method != self._method]
        return [(one, others[0]) for one, others in found if len(others) == 1]

    def _place(self, record: Run) -> tuple[str | None, ...]:
        return tuple(record.params.get(key) for key in self._keys)


def chosen_baseline(records: Iterable[Run], wanted: str | None = None) -> str | None:
    """The method `wanted`, which some run has. Without: the first of DEFAULT_BASELINES that has finished, where another
    method is there, too. Raises UnknownKeyError."""
    runs = list(records)
    methods = in_order(one.method for one in runs)
    if wanted is None:
        finished = {one.method for one in runs if one.status == "FINISHED"}
        return next((one for one in DEFAULT_BASELINES if one in finished and len(methods) > 1), None)
    if wanted not in methods:
        hint = did_you_mean(wanted, methods)
        raise UnknownKeyError(f"found baseline {wanted!r}; {f'{hint} ' if hint else ''}allowed: {', '.join(methods)}")
    return wanted


def difference(metric: str, pairs: Iterable[Pair]) -> Difference | None:
    """Of a metric's last value; None where no pair has it finite."""
    values, both, ids = {}, [], []
    for one, other in pairs:
        mine, its = one.metrics.get(metric, math.nan), other.metrics.get(metric, math.nan)
        if math.isfinite(mine - its):
            values[one.run_id] = mine - its
            both.append((mine, its))
            ids.append((one.run_id, other.run_id))
    return Difference(spread(values), paired_p(both), tuple(ids)) if ids else None


def paired_p(pairs: Sequence[tuple[float, float]]) -> float:
    """Of the paired t-test; NaN with fewer than two, and where their differences do not vary, as far as one can tell:
    there is nothing to test against."""
    if len(pairs) < 2:
        return math.nan
    from scipy.stats import ttest_rel

    first, second = np.transpose(pairs)
    gaps = first - second
    if np.ptp(gaps) <= _ROUNDING * float(np.abs([first, second]).max()):
        return math.nan
    return float(ttest_rel(first, second).pvalue)


def _told_apart(key: str, runs: Sequence[Run]) -> bool:
    if key in (METHOD, TRIAL) or not all(key in one.params for one in runs):
        return False
    return not key.startswith("exchange.") or len({one.params[key] for one in runs}) > 1
