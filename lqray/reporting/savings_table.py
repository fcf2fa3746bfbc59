"""What methods save against a baseline, as columns and sentences of a report."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lqray.experiment.headline import three_digits, written
from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.pairs import DEFAULT_BASELINES
from lqray.reporting.savings import TO_TARGET, Saving
from lqray.reporting.targets import some_of

NOTHING = "-"


@dataclass(frozen=True)
class SavingsColumn:
    """Of a table: what is saved, by which word it is chosen, and how much it matters where there is little room."""

    what: str
    id: str
    title: str
    priority: int


SAVED = {
    "bytes_saved": "bytes_sent",
    "seconds_saved": "seconds_per_step",
    "bytes_to_target_saved": "bytes_to_target",
    "seconds_to_target_saved": "seconds_to_target",
}
"""By the word of a column, what it says is saved."""


def savings_columns(comparison: Comparison) -> list[SavingsColumn]:
    """Those that the comparison may have."""
    if comparison.baseline is None:
        return []
    found = [
        SavingsColumn("bytes_sent", "bytes_saved", "bytes saved", 78),
        SavingsColumn("seconds_per_step", "seconds_saved", "seconds per step saved", 45),
    ]
    if comparison.target is not None:
        goal = written(comparison.metrics[0], comparison.target)
        found += [
            SavingsColumn("bytes_to_target", "bytes_to_target_saved", f"bytes saved to {goal}", 83),
            SavingsColumn("seconds_to_target", "seconds_to_target_saved", f"seconds saved to {goal}", 82),
        ]
    return found


def savings_cell(group: Group, what: str) -> str:
    """The ratio, its interval where it says more, and of how many pairs it is, where not of all."""
    found = group.saved.get(what)
    if found is None:
        return NOTHING
    return times(found.mean) + _interval(found) + some_of(len(found.pairs), found.of)


def savings_notes(comparison: Comparison, baseline: str, words: Collection[str]) -> list[str]:
    """What columns mean, in sentences. baseline: as tables call it. words: of the columns."""
    different = any(one.difference for group in comparison.groups for one in group.metrics.values())
    saved = {what for group in comparison.groups for what in group.saved} & {SAVED.get(word) for word in words}
    if not comparison.baseline or not set(words) & {"difference", *SAVED}:
        return []
    among = f"the default among {', '.join(DEFAULT_BASELINES[:-1])} and {DEFAULT_BASELINES[-1]}"
    said = [f"Baseline: {baseline}{f' ({among})' if comparison.baseline_by_default else ''}."]
    if different and "difference" in words:
        said.append(
            f"- {baseline}: mean difference in pairs of equal seed; [ ]: its 95% interval (Student's t); "
            "p of the paired t-test."
        )
    if saved:
        said.append(
            f"Saved: {baseline}'s over the own, geometric mean of the ratios in pairs of equal seed; [ ]: "
            "its 95% interval (Student's t on the logarithms)."
        )
    if saved & {"seconds_per_step", "seconds_to_target"}:
        said.append(
            "Seconds are of the machine, and of what else it did while each method ran, which no interval covers: they "
            "compare nothing where runs were not alone; --link models links."
        )
    if saved & set(TO_TARGET):
        said.append("Saved to the target: of pairs that both reached it.")
    return said


def bold_notes(comparison: Comparison) -> list[str]:
    """Which means are bold, and why none is, in sentences."""
    counts = [group.metrics[name].final.count for group in comparison.groups for name in comparison.metrics]
    tests = "t-tests paired by seed where seeds pair, else Welch's, at 5% by Holm over the rows"
    said = [f"Bold: no row is significantly better ({tests}); none of a metric is, if that is all."]
    if any(count == 1 for count in counts):
        said.append("Rows of one finished run are never bold: nothing is known of how they vary.")
    return said


def savings_row(group: Group, comparison: Comparison) -> dict[str, Any]:
    """Columns of CSV, of what groups of the comparison may have."""
    row: dict[str, Any] = {}
    for what in (one.what for one in savings_columns(comparison)):
        found = group.saved.get(what)
        numbers = {"": found.mean, " low": found.low, " high": found.high, " p_value": found.p_value} if found else {}
        for part in ("", " low", " high", " p_value"):
            value = numbers.get(part, math.nan)
            row[f"{what} saved{part}"] = None if math.isnan(value) else value
        row[f"{what} saved pairs"] = len(found.pairs) if found else 0
    return row


def savings_json(group: Group) -> dict[str, Any]:
    """By what is saved; not finite is null."""
    return {
        what: {
            "ratio": _plain(found.mean),
            "interval_95": [_plain(found.low), _plain(found.high)],
            "p_value": _plain(found.p_value),
            "pairs": [list(pair) for pair in found.pairs],
            "of_pairs": found.of,
            "runs": dict(found.values),
        }
        for what, found in group.saved.items()
    }


def times(ratio: float) -> str:
    """To three digits."""
    return f"{three_digits(ratio)}×"


def _interval(found: Saving) -> str:
    low, high = three_digits(found.low), three_digits(found.high)
    return "" if math.isnan(found.low) or low == high else f" [{low}, {high}]"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
