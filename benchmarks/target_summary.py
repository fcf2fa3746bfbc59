"""What runs of benchmarks/time_to_target.py say of methods, beside bf16."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def place(workload: str, link: int) -> str:
    """How results call a workload on a link of so many Mbit/s, or the link alone."""
    return f"{workload}, " * bool(workload) + (f"{link} Mbit/s" if link else "unlimited")


def wire_seconds(sent: float, link: int) -> float:
    """Of so many bytes at the rate of a link, in Mbit/s; 0 where it has none."""
    return 8e-6 * sent / link if link else 0.0


def summary(rows: Sequence[Mapping[str, Any]], compute: Mapping[str, float]) -> dict[str, Any]:
    """By workload, link and method: medians over the seeds that reached the target, and what they are beside bf16.
    compute: seconds, by `place`."""
    found: dict[str, Any] = {}
    for row in rows:
        goal = f"{row['workload']}, {row['target']:g} within {row['iterations']} steps"
        at = found.setdefault(goal, {}).setdefault(place("", row["link_megabits"]), {})
        at.setdefault(row["method"], []).append(row)
    for links in found.values():
        for name, methods in links.items():
            plain = methods.get("bf16")
            each = {method: _of_method(own, plain) for method, own in methods.items()}
            if plain and (alone := compute.get(place(plain[0]["workload"], plain[0]["link_megabits"]))):
                wire = wire_seconds(plain[0]["bytes_per_step"], plain[0]["link_megabits"])
                measured = statistics.median(row["seconds_per_step"] for row in plain)
                each["possible"] = {
                    "step_by_bf16": measured / alone,
                    "by_rate": (alone + wire) / alone,
                    "bf16_wire_seconds": wire,
                }
            links[name] = each
    return found


def _of_method(rows: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    reached = [row for row in rows if row["reached"]]
    result: dict[str, Any] = {
        "seeds": len(rows),
        "reached": len(reached),
        "measured": sum(row["measured"] for row in rows),
        "seconds_to_target": statistics.median(row["seconds_to_target"] for row in reached) if reached else None,
        "seconds_per_step": statistics.median(row["seconds_per_step"] for row in rows),
    }
    base = {row["seed"]: row for row in plain or ()}
    pairs = [(base[row["seed"]], row) for row in rows if row["seed"] in base]
    if pairs:
        steps = [before["seconds_per_step"] / row["seconds_per_step"] for before, row in pairs]
        result["step_by_bf16"] = statistics.median(steps)
    ends = [
        before["seconds_to_target"] / row["seconds_to_target"]
        for before, row in pairs
        if before["reached"] and row["reached"]
    ]
    result["speed_up_over_bf16"] = statistics.median(ends) if ends else None
    result["speed_ups"] = sorted(ends)
    result["final_metrics"] = [row["curve"][-1][1] for row in rows if row.get("curve")]
    return result


def targets_of(found: Mapping[str, Any]) -> dict[str, bool]:
    """Of each workload and link where bf16 and others were run: whether the fastest is there in as little as 1 / 0.85
    of what is `possible`, if bf16's step took as long as its bytes at the link's rate, and as it was measured; over 10
    Mbit/s, whether it is five times as fast as bf16; whether two bits are before bf16."""
    met: dict[str, bool] = {}
    for workload, links in found.items():
        for link, methods in links.items():
            speeds = {
                name: own["speed_up_over_bf16"]
                for name, own in methods.items()
                if name not in ("bf16", "possible") and own["speed_up_over_bf16"] is not None
            }
            place = f"{workload}, {link}"
            for method in speeds.keys() & {"eden_2_bits", "allocated_2_bits"}:
                met[f"{place}: {method} reaches the target before bf16"] = speeds[method] > 1
            possible = methods.get("possible")
            if speeds and possible and link != "unlimited":
                most = max(speeds.values()) / 0.85
                met[f"{place}: the fastest has 85% of what is possible by the link's rate"] = (
                    most >= possible["by_rate"]
                )
                met[f"{place}: the fastest has 85% of what is possible"] = most >= possible["step_by_bf16"]
            if speeds and link == "10 Mbit/s":
                met[f"{place}: the fastest is there 5 times as fast as bf16"] = max(speeds.values()) >= 5
    return dict(sorted(met.items()))


def markdown(found: Mapping[str, Any], digits: int = 3) -> str:
    """Of one workload of `summary`, a table. final: mean metric at the end of the schedule, of runs that went there.
    By link: seconds to the target, medians over seeds, `~` where they were extrapolated; and how many times as fast as
    bf16, in pairs of equal seed, from the least to the most. `possible`: bf16's step over one of
    computing alone."""
    links = [name for name in found if name != "unlimited"]
    methods = list(dict.fromkeys(method for name in links for method in found[name] if method != "possible"))
    lines = ["| method | final | " + " | ".join(links) + " |", "| --- | ---: |" + " ---: |" * len(links)]
    for method in methods:
        ends = next((own["final_metrics"] for name in found if (own := found[name].get(method))), [])
        final = f"{statistics.fmean(ends):.{digits}f}" if ends else "-"
        cells = [_cell(found[name].get(method)) for name in links]
        lines.append(f"| `{method}` | {final} | " + " | ".join(cells) + " |")
    possible = [found[name].get("possible") for name in links]
    if any(possible):
        cells = [f"{one['step_by_bf16']:.3g}×" if one else "-" for one in possible]
        lines.append("| possible, of a step | | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return "-"
    if own["seconds_to_target"] is None:
        return f"never ({own['seeds']} seeds)"
    mark = "" if own["measured"] == own["seeds"] else "~"
    some = f", {own['reached']} of {own['seeds']}" if own["reached"] < own["seeds"] else ""
    ends = own["speed_ups"]
    if not ends:
        return f"{mark}{own['seconds_to_target']:.3g} s{some}"
    low, high = f"{ends[0]:.2f}", f"{ends[-1]:.2f}"
    return f"{mark}{own['seconds_to_target']:.3g} s ({low if low == high else f'{low}–{high}'}×){some}"
