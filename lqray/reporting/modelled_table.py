"""What `lqray report --link` adds: a table of modelled steps, and the same for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.labels import PLAIN, Labels
from lqray.reporting.links import shown_bandwidth
from lqray.reporting.modelled import Predictions
from lqray.reporting.tables import NOTHING, Column, key_columns


def modelled_columns(comparison: Comparison, found: Predictions, labels: Labels = PLAIN) -> list[Column]:
    """Of a table beside that of the comparison: its keys, seconds of a step by link and number of workers, and the
    bandwidths below which it is faster than bf16's."""
    places = {id(group): one for group, one in zip(comparison.groups, found.groups, strict=True)}

    def seconds(number: int) -> Column:
        def cell(group: Group) -> str:
            one = places[id(group)]
            if one is None:
                return NOTHING
            predicted = one.predictions[number]
            return f"{_seconds(predicted.seconds)} ({predicted.by_bf16:.2f}×)"

        link, count = found.links[number // len(found.workers)], found.workers[number % len(found.workers)]
        return Column(f"modelled step, {link.name}, {count} workers", cell)

    def below(count: int) -> Column:
        def cell(group: Group) -> str:
            one = places[id(group)]
            return shown_bandwidth(one.break_even[count]) if one else NOTHING

        return Column(f"faster than bf16 below, {count} workers", cell)

    return [
        *key_columns(comparison, labels),
        *(seconds(number) for number in range(len(found.links) * len(found.workers))),
        *(below(count) for count in found.workers),
    ]


def modelled_notes(found: Predictions) -> list[str]:
    """What the table means, in sentences."""
    said = [
        "Modelled, not measured: computing, encoding and decoding as recorded, bytes over the bandwidth and a latency "
        "for each message, on hosts of one worker each (hierarchical: of any, one payload a host); nothing hides "
        "behind the backward pass. ×: a step of bf16, "
        f"modelled alike, over this one. Faster than bf16 below: at the latency of {found.links[0].name}.",
    ]
    if None in found.groups:
        said.append(
            "Rows without a modelled step have no finished run that recorded bytes and phases (telemetry.every), or "
            "exchange by a reduction of one's own."
        )
    return said


def modelled_json(found: Predictions) -> list[dict[str, Any]]:
    """Of each group, as plain data: seconds, bytes, bits a second (null: any; elsewhere: not finite)."""
    return [{"modelled": None if one is None else _document(vars(one))} for one in found.groups]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def modelled_rows(found: Predictions) -> list[dict[str, float | None]]:
    """Of each group, columns of CSV."""
    titles = [
        f"modelled seconds per step {link.name} {count} workers" for link in found.links for count in found.workers
    ]
    limits = [f"faster than bf16 below bits per second {count} workers" for count in found.workers]
    blank: dict[str, float | None] = dict.fromkeys([*titles, *limits])
    rows = []
    for one in found.groups:
        values = [*(each.seconds for each in one.predictions), *one.break_even.values()] if one else []
        rows.append(blank | dict(zip(blank, values, strict=False)))
    return rows


def _document(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": {key: _finite(value) for key, value in vars(one["step"]).items()},
        "predictions": [
            {
                "link": each.link.name,
                "bits_per_second": each.link.bandwidth,
                "latency_seconds": each.link.latency,
                "workers": each.workers,
                "seconds_per_step": _finite(each.seconds),
                "step_by_bf16": _finite(each.by_bf16),
            }
            for each in one["predictions"]
        ],
        "faster_than_bf16_below": {str(count): _finite(bits) for count, bits in one["break_even"].items()},
    }


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
