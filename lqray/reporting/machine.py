"""A comparison for programs: rows, CSV, a row for each group, and JSON, which also has every run's values and ids."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lqray.experiment.foreign import in_csv
from lqray.reporting.comparison import Comparison, Group, Measured
from lqray.reporting.intervals import Spread
from lqray.reporting.savings_table import SAVED, savings_json, savings_row
from lqray.reporting.tables import Column

_STATES = ("finished", "failed", "killed", "missing", "running", "scheduled", "stopped early")
_NUMBERS = {
    "final": ("{} mean", "{} std", "{} count", "{} not finite"),
    "interval": ("{} low", "{} high"),
    "best": ("{} best",),
    "last": ("{} last",),
    "difference": ("{} difference", "{} p_value", "{} pairs"),
    "steps_to_target": ("steps to target", "reached target"),
    "seconds_to_target": ("seconds to target",),
    "mb_to_target": ("bytes to target",),
    "mb_sent": ("bytes_sent",),
    **{
        word: tuple(f"{what} saved{part}" for part in ("", " low", " high", " p_value", " pairs"))
        for word, what in SAVED.items()
    },
}
"""Of a table's columns, those of CSV."""
_PARTS = {"interval": "final", **dict.fromkeys(("steps_to_target", "seconds_to_target", "mb_to_target"), "to_target")}
"""Of a table's columns, keys of a metric in JSON where they have another name."""


def csv_table(
    comparison: Comparison, more: Sequence[Mapping[str, float | None]] = (), columns: Sequence[Column] = ()
) -> str:
    """Numbers unrounded, empty where there is none; nan or inf where no run ended with another. States of trials as
    columns; run ids of finished runs last. more: further columns, of each group, before those. columns: those of a
    table whose numbers are wanted, in their order; all without any."""
    found = _of_columns(comparison, columns) if columns else rows(comparison)
    for row, further in zip(found, more, strict=False):
        ids = row.pop("run_ids")
        row |= {**further, "run_ids": ids}
    stream = io.StringIO()
    titles = list(found[0]) if found else [*comparison.keys, "finished", "runs"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(in_csv, titles))
    writer.writerows([in_csv(_cell(row[title])) for title in titles] for row in found)
    return stream.getvalue()


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each group, by column: keys as text, counts, numbers unrounded, None where there is none; nan or inf
    where no run ended with another."""
    states = sorted({state for group in comparison.groups for state in group.states} | {"finished"})
    return [_row(group, comparison, states) for group in comparison.groups]


def _of_columns(comparison: Comparison, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """What rows have of the columns of a table; ids last."""
    return [
        {title: value for one in columns for title, value in _titled(one, group, row).items()}
        | {"run_ids": row["run_ids"]}
        for group, row in zip(comparison.groups, rows(comparison), strict=True)
    ]


def _titled(column: Column, group: Group, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of CSV that have a table's numbers; its text, where there are none."""
    if column.key:
        return {column.key: row.get(column.key, column.cell(group))}
    if column.word == "runs":
        return {title: row[title] for title in (*_STATES, "runs") if title in row}
    titles = [title.format(column.metric) for title in _NUMBERS.get(column.word, (column.word,))]
    return {title: row[title] for title in titles if title in row} or {column.title: column.cell(group)}


def _cell(value: object) -> object:
    return "" if value is None else repr(value) if isinstance(value, float) else value


def json_document(
    comparison: Comparison,
    stores: Mapping[str, str],
    more: Sequence[Mapping[str, Any]] = (),
    columns: Sequence[Column] = (),
) -> str:
    """stores: tracking URI by experiment. NaN and infinity are null. more: further keys, of each group. columns: those
    of a table whose numbers are wanted; all without any."""
    document: dict[str, Any] = {
        "experiments": dict(stores),
        "group_by": list(comparison.keys),
        "metrics": list(comparison.metrics),
        "baseline": comparison.baseline,
        "target": comparison.target,
        "last": comparison.last,
        "smooth": comparison.smooth,
        "groups": [
            {
                "keys": dict(group.keys),
                "states": dict(group.states),
                "runs": group.runs,
                "run_ids": [one.run_id for one in group.finished],
                "trials": [
                    {"name": one.name, "trial_id": one.trial_id, "run_id": one.run_id or None, "state": one.state}
                    for one in group.records
                ],
                "metrics": {name: _measured(one) for name, one in group.metrics.items()},
                "costs": {name: _spread(one) for name, one in group.costs.items()},
                "saved": savings_json(group),
            }
            for group in comparison.groups
        ],
    }
    for group, further in zip(document["groups"], more, strict=False):
        group |= further
    if columns:
        document["columns"] = [one.word for one in columns]
        wanted = {(one.metric, _PARTS.get(one.word, one.word)) for one in columns}
        costs = {title for one in columns for title in _NUMBERS.get(one.word, (one.word,))}
        for group in document["groups"]:
            group["metrics"] = {
                name: {part: value for part, value in measured.items() if (name, part) in wanted}
                for name, measured in group["metrics"].items()
            }
            group["costs"] = {name: value for name, value in group["costs"].items() if name in costs}
            saved = {SAVED.get(one.word) for one in columns}
            group["saved"] = {name: value for name, value in group["saved"].items() if name in saved}
    return json.dumps(document, indent=1) + "\n"


def _row(group: Group, comparison: Comparison, states: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {key: group.keys[key] for key in comparison.keys}
    row |= {state: group.states.get(state, 0) for state in states} | {"runs": group.runs}
    for name, measured in group.metrics.items():
        row |= {f"{name} {what}": value for what, value in _columns(measured.final).items()}
        row |= {f"{name} count": measured.final.count, f"{name} not finite": measured.final.not_finite}
        row |= {f"{name} best": _mean(measured.best), f"{name} last": _mean(measured.last)}
        found = measured.difference
        row |= {
            f"{name} difference": _number(found.spread.mean if found else math.nan),
            f"{name} difference low": _number(found.spread.low if found else math.nan),
            f"{name} difference high": _number(found.spread.high if found else math.nan),
            f"{name} p_value": _number(found.p_value if found else math.nan),
            f"{name} pairs": len(found.pairs) if found else 0,
        }
        if measured.to_target:
            row |= {f"{what} to target": _number(one.mean) for what, one in measured.to_target.items()}
            row["reached target"] = measured.reached
    row |= {name: _number(one.mean) for name, one in group.costs.items()}
    row |= savings_row(group, comparison)
    row["run_ids"] = " ".join(one.run_id for one in group.finished)
    return row


def _columns(values: Spread) -> dict[str, float | None]:
    numbers = {"std": values.std, "low": values.low, "high": values.high}
    return {"mean": _mean(values)} | {name: _number(value) for name, value in numbers.items()}


def _mean(values: Spread) -> float | None:
    """Of the finite ones; nan or inf where runs ended with nothing else."""
    return values.representative if values.not_finite and not values.count else _number(values.mean)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _measured(measured: Measured) -> dict[str, Any]:
    found = measured.difference
    return {
        "final": _spread(measured.final),
        "best": _spread(measured.best),
        "last": _spread(measured.last),
        "difference": found
        and {**_spread(found.spread), "p_value": _plain(found.p_value), "pairs": [list(pair) for pair in found.pairs]},
        "to_target": {name: _spread(one) for name, one in measured.to_target.items()},
        "reached": measured.reached,
    }


def _spread(values: Spread) -> dict[str, Any]:
    return {
        "mean": _plain(values.mean),
        "std": _plain(values.std),
        "interval_95": [_plain(values.low), _plain(values.high)],
        "count": values.count,
        "not_finite": values.not_finite,
        "runs": {run_id: _plain(value) for run_id, value in values.values.items()},
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
