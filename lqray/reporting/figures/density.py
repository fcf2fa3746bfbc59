"""Levels against the density of the normalized coordinates that they quantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_density(snapshots: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """A panel for each (title, `density.json` of a run): the density as a line, its method's levels as vertical lines.

    Coordinates are linear within 1e-6 of zero and logarithmic beyond, as the bins are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6 * len(snapshots)), layout="constrained")
    panels = figure.subplots(len(snapshots), 1, squeeze=False)[:, 0]
    for panel, (title, snapshot) in zip(panels, snapshots, strict=True):
        for level in snapshot["levels"]:
            panel.axvline(level, color="0.6", linewidth=0.8)
        panel.stairs(snapshot["density"], snapshot["edges"], color="#0072B2", label="density")
        panel.set_xscale("symlog", linthresh=1e-6, linscale=0.5)
        panel.set_xlim(-1.1, 1.1)
        panel.set_xticks([-1, -1e-2, -1e-4, 0, 1e-4, 1e-2, 1])
        panel.set_xticks([], minor=True)
        panel.set_yscale("log")
        panel.set_title(f"{title}, after {snapshot['iteration']} iterations", fontsize=9)
        panel.set_ylabel("density")
    panels[-1].set_xlabel("coordinate / norm of its bucket; grey: levels")
    return figure
