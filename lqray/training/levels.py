"""Levels, and slopes, of a run over its steps: measured like metrics, and kept as a history of their own, since a
metric for each would be hundreds of curves. Imports no torch, as `lqray.training.reports`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_NUMBERS = 1 << 16
"""That a history holds, and with it a checkpoint and an artifact, unless one measurement alone has more."""
_LEVEL = re.compile(r"(quantizer/(?:.+/)?(?:level|slope))/(\d+)")


def is_level(metric: str) -> bool:
    """Whether a metric is a single level or slope: `quantizer/level/3`, `quantizer/NAME/slope/3`."""
    return _LEVEL.fullmatch(metric) is not None


@dataclass
class _Series:
    """What was measured at `steps`, ascending: `values[row]` for each of `rows`; a row that stays is kept once. seen:
    how many times it was measured."""

    steps: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    seen: int = 0

    def add(self, step: int, values: list[float]) -> None:
        if not self.values or self.values[-1] != values:
            self.values.append(values)
        self.steps.append(step)
        self.rows.append(len(self.values) - 1)

    def thinned(self) -> _Series:
        """Every second measurement, from the first on."""
        kept = _Series(seen=self.seen)
        for step, row in zip(self.steps[::2], self.rows[::2], strict=True):
            kept.add(step, self.values[row])
        return kept

    @property
    def numbers(self) -> int:
        return 2 * len(self.steps) + sum(map(len, self.values))


@dataclass
class LevelHistory:
    """By what the metrics are called but for their number (`quantizer/level`, `quantizer/NAME/level`). every: of the
    measurements, how many there are to one that is kept: doubled, and every second one dropped, whenever there are more
    than MOST_NUMBERS numbers, so that what is kept is a function of what was measured, and covers the whole run."""

    every: int = 1
    series: dict[str, _Series] = field(default_factory=dict)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the levels among the metrics of a step; those of which one is not finite are left out."""
        found: dict[str, dict[int, float]] = {}
        for key, value in metrics.items():
            if match := _LEVEL.fullmatch(key):
                found.setdefault(match[1], {})[int(match[2])] = value
        for name, by_number in found.items():
            values = [by_number[number] for number in sorted(by_number)]
            if not all(map(math.isfinite, values)):
                continue
            own = self.series.setdefault(name, _Series())
            if own.seen % self.every == 0:
                own.add(step, values)
            own.seen += 1
        while self._numbers > MOST_NUMBERS and any(len(one.steps) > 1 for one in self.series.values()):
            self.series = {name: one.thinned() for name, one in self.series.items()}
            self.every *= 2

    def document(self) -> dict[str, Any] | None:
        """As plain data, `levels.json` of a run; None where nothing was measured: of each series steps (n,), rows (n,)
        and values (m,) lists of numbers, where values[rows[i]] are the levels at steps[i]."""
        if not self.series:
            return None
        series = {
            name: {"steps": [*one.steps], "rows": [*one.rows], "values": [*one.values]}
            for name, one in self.series.items()
        }
        return {"every": self.every, "series": series}

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        found = self.document() or {"every": self.every, "series": {}}
        return found | {"seen": {name: one.seen for name, one in self.series.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.every = state["every"]
        self.series = {
            name: _Series([*one["steps"]], [*one["rows"]], [*one["values"]], state["seen"][name])
            for name, one in state["series"].items()
        }

    @property
    def _numbers(self) -> int:
        return sum(one.numbers for one in self.series.values())
