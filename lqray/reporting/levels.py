"""Levels of runs over their steps: of the artifact `levels.json`, and of runs of earlier versions from metrics, one for
each level. They are called as those metrics, whichever they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from lqray.experiment.foreign import in_line, json_value
from lqray.reporting.artifacts import ArtifactError, read_text
from lqray.reporting.histories import History
from lqray.store.runs import Run

LEVELS = "levels.json"
LEVEL_METRIC = re.compile(r"quantizer/(?:(.+)/)?level/(\d+)")
"""The compressor, where there are several, and the number of its level."""
_SERIES = re.compile(r"quantizer/(?:.{1,250}/)?(?:level|slope)")
_MOST_STEPS, _MOST_NUMBERS = 1 << 17, 1 << 20
_MOST_STEP = 1 << 53
_LEAST, _MOST = 1e-46, 1e12
"""Of levels, but for 0: float32 has none smaller."""


def read_levels(uri: str, record: Run) -> dict[str, Any] | None:
    """A run's `levels.json`: `series` by name (`quantizer/level`, `quantizer/NAME/level`, likewise slope), of each
    `steps` (n,) ascending, `rows` (n,) and `values` (m,) lists of numbers, where values[rows[i]] are the levels at
    steps[i]; None where it has none. uri: absolute store. Raises ArtifactError, StoreError, StoreAwayError."""
    text = read_text(uri, record, LEVELS)
    if text is None:
        return None
    try:
        found = json_value(text)
        if not isinstance(found, dict) or not isinstance(found.get("series"), dict):
            raise ValueError("series: allowed: a mapping")
        left = _MOST_NUMBERS
        for name, one in found["series"].items():
            if not _SERIES.fullmatch(name):
                raise ValueError(
                    f"series: found {_shown(name)}; allowed: quantizer/level, quantizer/NAME/level, or slope"
                )
            left -= _checked(name, one)
            if left < 0:
                raise ValueError(f"series: allowed: at most {_MOST_NUMBERS} numbers")
    except ValueError as error:
        raise ArtifactError(
            in_line(f"{LEVELS} of run {record.run_id} ({record.name}) cannot be used: {error}")
        ) from None
    return found


def level_histories(document: Mapping[str, Any]) -> dict[str, History]:
    """Of a `levels.json`, by what the metric would be called: quantizer/level/3. Times are not known: NaN."""
    found = {}
    for name, one in document["series"].items():
        steps, rows = np.asarray(one["steps"], np.int64), np.asarray(one["rows"], np.int64)
        values = [one["values"][row] for row in rows]
        for number in range(max(map(len, values), default=0)):
            has = np.asarray([number < len(row) for row in values], bool)
            curve = np.asarray([row[number] for row in values if number < len(row)], np.float64)
            found[f"{name}/{number}"] = History(steps[has], curve, np.full(len(curve), np.nan))
    return found


def continued(earlier: History, own: History) -> History:
    """A run that an earlier version began, from its metrics, and from the step on at which the artifact begins, from
    that."""
    before = earlier.steps < own.steps[0] if len(own) else np.ones(len(earlier), bool)
    return History(
        np.concatenate([earlier.steps[before], own.steps]),
        np.concatenate([earlier.values[before], own.values]),
        np.concatenate([earlier.times[before], own.times]),
    )


def _checked(name: str, one: Any) -> int:
    """How many numbers a series will be. Raises ValueError unless it is what lqray writes."""
    if not isinstance(one, dict):
        raise ValueError(f"{name}: found {_shown(one)}; allowed: a mapping with steps, rows and values")
    steps, rows, values = (one.get(key, ()) for key in ("steps", "rows", "values"))
    if not _whole(steps, _MOST_STEP) or len(steps) > _MOST_STEPS or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"{name}.steps: allowed: a list of at most {_MOST_STEPS} whole numbers, ascending")
    if not isinstance(values, list) or not all(isinstance(row, list) for row in values):
        raise ValueError(f"{name}.values: allowed: a list of lists of numbers")
    if not _whole(rows, len(values)) or len(rows) != len(steps):
        raise ValueError(f"{name}.rows: allowed: for each step a whole number below that of values")
    for level in (level for row in values for level in row):
        usable = isinstance(level, int | float) and not isinstance(level, bool)
        if not usable or (level and not _LEAST < abs(level) < _MOST):
            raise ValueError(f"{name}.values: found {_shown(level)}; allowed: 0, or numbers from {_LEAST} to {_MOST}")
    return sum(len(values[row]) for row in rows)


def _whole(found: Any, below: int) -> bool:
    return (
        isinstance(found, list)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in found)
        and (not found or (min(found) >= 0 and max(found) < below))
    )


def _shown(value: Any) -> str:
    return in_line(repr(value)[:40])
