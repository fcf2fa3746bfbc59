"""The description of an experiment in MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from lqray.reporting.comparison import Comparison
from lqray.reporting.tables import markdown_table


def sweep_summary(name: str, comparison: Comparison, axes: Sequence[str], command: str) -> str:
    """In Markdown: what varies, how its trials stand, and the comparison."""
    counts: dict[str, int] = {}
    for group in comparison.groups:
        for state, count in group.states.items():
            counts[state] = counts.get(state, 0) + count
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none yet"
    varies = ", ".join(f"`{axis}`" for axis in axes) or "nothing: a single trial"
    return (
        f"**{name}**, last launched by `{command}`\n\nVaries: {varies}. Trials of this launch: {states}.\n\n"
        f"{markdown_table(comparison)}\n"
    )
