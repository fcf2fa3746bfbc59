"""Levels against the density of the normalized coordinates that they quantize, a panel for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.reporting.artifacts import DENSITY, ArtifactError
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.style import MOST_PANELS, WIDTHS, even_columns, legend, panels, styled, wrapped
from lqray.reporting.methods import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TAKES = frozenset({"group_by"})
_WIDE, _NARROW = 3.2, 1.65
"""Inches of a panel."""
_ROUNDED = 1e-9
"""Of all coordinates: what a bin holds beside exact zeros is no less."""
_FILL: Mapping[str, Any] = {"color": "0.82", "linewidth": 0}
_ZEROS: Mapping[str, Any] = {"color": "black", "linewidth": 1.6}


def draw(recordings: Recordings, options: Options) -> Figure:
    """Of the last gradient of the first finished run of each group, from its artifact density.json.

    Raises NothingToDrawError, UnknownKeyError.
    """
    snapshots: list[tuple[str, Mapping[str, Any]]] = []
    damaged: list[str] = []
    groups = [one for one in recordings.groups(options.group_by) if _has_levels(recordings, one)]
    if len(groups) > MOST_PANELS:
        left = f"{len(groups) - MOST_PANELS} groups, from {groups[MOST_PANELS].label} on, are left out"
        recordings.remark(f"{MOST_PANELS} panels are drawn; {left}; choose with --only or --where")
    for group in groups[:MOST_PANELS]:
        try:
            snapshot = recordings.density(group.finished[0])
        except ArtifactError as error:
            damaged.append(f"left out: {group.label}: {error}")
            recordings.remark(damaged[-1])
            continue
        if snapshot is None:
            recordings.remark(f"left out, for it has no {DENSITY}: {group.label}")
        else:
            snapshots.append((group.label, snapshot))
    if not snapshots and damaged:
        raise NothingToDrawError("; ".join(damaged))
    if not snapshots:
        raise NothingToDrawError(
            f"no finished trial has the artifact {DENSITY}, which trials of quantized methods keep when they end; "
            "those recorded by an earlier lqray have none: `lqray run FILE --rerun` records them"
        )
    return _draw(snapshots, options.width)


def draw_density(snapshots: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """A panel for each (title, `density.json` of a run): the density in grey, its levels as vertical lines in the
    colour of the method. Coordinates that are exactly 0 have no density: a black line there says their share, where it
    was recorded. Coordinates are linear within 1e-6 of zero and logarithmic beyond, as the bins are."""
    with styled():
        return _draw(snapshots, "single" if len(snapshots) < 5 else "double")


def _has_levels(recordings: Recordings, group: Group) -> bool:
    """Whether a single compressor's: only such ones have a density."""
    if not group.finished:
        return False
    first = group.finished[0]
    return any(key.startswith("quantizer/level/") for key in (*first.metrics, *recordings.levels(first)))


def _draw(snapshots: Sequence[tuple[str, Mapping[str, Any]]], width: str) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    wide = len(snapshots) <= WIDTHS[width] // _WIDE
    columns = even_columns(len(snapshots), int(WIDTHS[width] // (_WIDE if wide else _NARROW)))
    figure, axes = panels(width, len(snapshots), 1.5, columns=columns)
    densities = [_without_zeros(snapshot) for _, snapshot in snapshots]
    lowest, highest = _range(densities)
    for number, (panel, (title, snapshot), density) in enumerate(zip(axes, snapshots, densities, strict=True)):
        _panel(panel, title, snapshot, density, narrow=not wide)
        panel.set_ylim(lowest, highest)
        if number % columns:
            panel.tick_params(labelleft=False)
        else:
            panel.set_ylabel("density")
        if number + columns >= len(snapshots):
            panel.set_xlabel("coordinate / norm")
    levels = Line2D([], [], color="0.3", linewidth=1.0)
    entries: list[tuple[Any, str]] = [(Patch(**_FILL), "density of normalized coordinates"), (levels, "levels")]
    if any(snapshot.get("zeros") for _, snapshot in snapshots):
        entries.append((Line2D([], [], **_ZEROS), "coordinates that are exactly 0"))
    legend(figure, entries)
    return figure


def _without_zeros(snapshot: Mapping[str, Any]) -> NDArray[np.float64]:
    """Density (n,) of the coordinates that are not exactly 0, as far as these were counted."""
    density, edges = np.asarray(snapshot["density"], np.float64), np.asarray(snapshot["edges"], np.float64)
    zeros = snapshot.get("zeros", 0.0)
    at = int(np.searchsorted(edges, 0.0, side="right")) - 1
    if not zeros or not 0 <= at < len(density):
        return density
    width = edges[at + 1] - edges[at]
    others = density[at] * width - zeros
    density[at] = others / width if others >= _ROUNDED else 0.0
    return density


def _panel(panel: Axes, title: str, snapshot: Mapping[str, Any], density: NDArray[np.float64], narrow: bool) -> None:
    colour = look(snapshot["method"]).colour
    panel.set_yscale("log")
    panel.stairs(np.where(density > 0, density, np.nan), snapshot["edges"], fill=True, baseline=1e-300, **_FILL)
    for level in snapshot["levels"]:
        panel.axvline(level, color=colour, linewidth=1.0, gid="level")
    if zeros := snapshot.get("zeros"):
        panel.axvline(0.0, ymax=0.8, **_ZEROS, gid="zeros")
        text = f"{100 * zeros:.2g}%" + ("" if narrow else " exactly 0")
        panel.text(0.0, 0.98, text, transform=panel.get_xaxis_transform(), ha="center", va="top", fontsize=6)
    panel.set_xscale("symlog", linthresh=1e-6, linscale=0.5)
    panel.set_xlim(-1.3, 1.3)
    exponents = (3,) if narrow else (2, 4)
    ticks = [(1.0, "1"), *((10.0**-one, f"$10^{{-{one}}}$") for one in exponents)]
    both = [*((-at, f"$-${text}") for at, text in ticks), (0.0, "0"), *ticks]
    panel.set_xticks([at for at, _ in both], [text for _, text in both])
    panel.set_xticks([], minor=True)
    panel.grid(False)
    panel.set_title(wrapped(title, (_NARROW if narrow else _WIDE) - 0.2), fontsize=7)


def _range(densities: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    values = np.concatenate(densities)
    values = values[np.isfinite(values) & (values > 0)]
    return (float(values.min()) / 2, float(values.max()) * 2) if len(values) else (0.1, 10.0)
