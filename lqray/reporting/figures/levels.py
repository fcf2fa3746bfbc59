"""Quantization levels against the iteration, a panel for each method, and for each compressor where it has several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.reporting.figures.drops import draw_drops
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings, band_note
from lqray.reporting.figures.seeds import Band, across
from lqray.reporting.figures.style import MOST_PANELS, even_columns, legend, panels, wrapped
from lqray.reporting.histories import History
from lqray.reporting.levels import LEVEL_METRIC
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAKES = frozenset({"group_by"})
_TITLE_INCHES = 1.5
_FEW = 10


def draw(recordings: Recordings, options: Options) -> Figure:
    """Every level over the run: of up to ten runs of a group the mean and, thin, each; of more, mean and interval.
    Linear below the smallest level, logarithmic beyond.

    Raises NothingToDrawError, UnknownKeyError.
    """
    found = [
        (f"{group.label}, {name}" if name else group.label, group, bands)
        for group in recordings.groups(options.group_by)
        for name in _compressors(recordings, group)
        if (bands := _levels(recordings, group, name))
    ]
    if not found:
        raise NothingToDrawError(
            "no trial has recorded levels; quantized methods do, every telemetry.every iterations, 0: never"
        )
    if len(found) > MOST_PANELS:
        left = ", ".join(title for title, _, _ in found[MOST_PANELS:])
        recordings.remark(f"{MOST_PANELS} panels are drawn, not those of {left}; choose with --only or --where")
        found = found[:MOST_PANELS]
    columns = even_columns(len(found), 2 if options.width == "single" else 4)
    figure, axes = panels(options.width, len(found), 1.45, columns=columns)
    for panel, (title, group, bands) in zip(axes, found, strict=True):
        _draw_levels(panel, title, group, bands)
    smallest = min(_smallest([band for band, _ in bands]) for _, _, bands in found)
    for number, panel in enumerate(axes):
        _scale(panel, smallest)
        panel.label_outer()
        if number + columns >= len(axes):
            panel.set_xlabel("iteration")
            panel.tick_params(labelbottom=True)
        if number % columns == 0:
            panel.set_ylabel("level")
        else:
            panel.tick_params(labelleft=False)
    drops = draw_drops(axes, recordings, _last_steps(recordings, [group for _, group, _ in found]))
    note = band_note(list({group.label: group for _, group, _ in found}.values()))
    if max(len(runs) for _, _, bands in found for _, runs in bands) <= _FEW:
        note = note.replace("95% interval of", "each of")
    legend(figure, drops, note)
    return figure


def _compressors(recordings: Recordings, group: Group) -> list[str]:
    """Those that have recorded levels, by their names; "" for one that is alone."""
    return sorted({name for one in group.records for name, _ in _numbered(recordings, one)})


def _levels(recordings: Recordings, group: Group, compressor: str) -> list[tuple[Band, list[History]]]:
    """For each level of a compressor, ascending, the band and the runs that it is of."""
    found = [_numbered(recordings, one) for one in group.records]
    bands = []
    for number in sorted({number for own in found for name, number in own if name == compressor}):
        runs = [own[compressor, number] for own in found if (compressor, number) in own]
        bands.append((across(runs), runs))
    return [one for one in bands if len(one[0])]


def _draw_levels(panel: Axes, title: str, group: Group, bands: list[tuple[Band, list[History]]]) -> None:
    for band, runs in bands:
        # A level holds from the step that was measured until the next that was.
        panel.plot(band.x, band.mean, color=group.look.colour, drawstyle="steps-post", linewidth=0.9, zorder=3)
        if len(runs) > _FEW:
            style: dict[str, Any] = {"alpha": 0.2, "linewidth": 0, "zorder": 2}
            panel.fill_between(band.x, band.low, band.high, step="post", color=group.look.colour, **style)
        elif len(runs) > 1:
            for one in runs:
                style = {"alpha": 0.4, "linewidth": 0.5, "gid": "run"}
                panel.plot(one.steps, one.values, color=group.look.colour, drawstyle="steps-post", **style)
    panel.set_title(wrapped(title, _TITLE_INCHES), fontsize=7)


def _smallest(bands: list[Band]) -> float:
    sizes = np.abs(np.concatenate([one.mean for one in bands]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(sizes.min()) if len(sizes) else 1.0


def _scale(panel: Axes, smallest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    decade = 10.0 ** np.floor(np.log10(smallest))
    panel.set_yscale("symlog", linthresh=decade, linscale=0.8)
    exponents = range(0, int(np.floor(np.log10(smallest))) - 1, -max(1, int(-np.log10(decade)) // 2))
    ticks = [10.0**one for one in exponents if 10.0**one >= decade]
    places = [*(-one for one in ticks), 0.0, *reversed(ticks)]
    panel.set_yticks(places, [_power(one) for one in places])
    panel.set_yticks([], minor=True)
    panel.set_ylim(-1.4, 1.4)
    panel.xaxis.set_major_locator(MaxNLocator(3))


def _power(value: float) -> str:
    if abs(value) in (0.0, 1.0):
        return f"{value:.0f}".replace("-", "−")
    return f"${'-' if value < 0 else ''}10^{{{np.log10(abs(value)):.0f}}}$"


def _last_steps(recordings: Recordings, groups: Iterable[Group]) -> dict[str, int]:
    """By run, that of its lowest levels' last record."""
    last: dict[str, int] = {}
    for group in groups:
        for one in group.records:
            for (_, number), history in _numbered(recordings, one).items():
                if number == 0 and len(history):
                    last[one.run_id] = int(history.steps[-1])
    return last


def _numbered(recordings: Recordings, record: Run) -> dict[tuple[str, int], History]:
    """A run's levels by compressor, "" for one that is alone, and number."""
    matches = {LEVEL_METRIC.fullmatch(key): history for key, history in recordings.levels(record).items()}
    return {(match[1] or "", int(match[2])): history for match, history in matches.items() if match}
