"""Seconds of a step against the bandwidth of the links, modelled, a line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.style import bounds, handle, legend, panels
from lqray.reporting.links import Link, Step, shown_bandwidth
from lqray.reporting.modelled import modelled_steps
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAKES = frozenset({"group_by"})
_WORKERS = (2, 8, 64)
_BANDWIDTHS = np.logspace(6, 11, 51)
_MARK_EVERY = 10


def draw(recordings: Recordings, options: Options) -> Figure:
    """A panel for each of 2, 8 and 64 workers, both axes logarithmic; see `lqray.reporting.modelled` for what a line is
    made of. A dotted line is bf16 at every step, modelled of the first network, where no group is that.

    Raises NothingToDrawError, UnknownKeyError.
    """
    groups = recordings.groups(options.group_by)
    steps = modelled_steps([group.finished for group in groups], recordings.histories)
    known = [(group, *one) for group, one in zip(groups, steps, strict=True) if one]
    if not known:
        raise NothingToDrawError(
            "no finished trial has recorded the bytes and phases of its steps, and exchanges by all_gather, "
            "scatter_reduce or an all-reduce; telemetry.every: 10, for one, measures every tenth step"
        )
    silent = [group.label for group, one in zip(groups, steps, strict=True) if one is None]
    if silent:
        recordings.remark(f"left out, for they have no such exchange, or have not recorded it: {', '.join(silent)}")
    figure, axes = panels(options.width, len(_WORKERS), columns=1 if options.width == "single" else 3)
    own = [(group, step) for group, step, _ in known]
    plain = None if any(_is_plain(one) for group, _ in own for one in group.finished) else known[0][2]
    for panel, workers in zip(axes, _WORKERS, strict=True):
        _draw(panel, own, plain, workers)
    entries = [(handle(group.look), group.label) for group, _ in own]
    if plain:
        from matplotlib.lines import Line2D

        entries.append((Line2D([], [], color="0.4", ls=":"), "bf16, modelled"))
    legend(figure, entries, "modelled, not measured; nothing hides behind the backward pass")
    return figure


def _draw(panel: Axes, steps: Sequence[tuple[Group, Step]], plain: Step | None, workers: int) -> None:
    from matplotlib.ticker import FuncFormatter

    drawn = []
    for number, (group, step) in enumerate(steps):
        drawn.append(_seconds(step, workers))
        look, marks = group.look, (number * _MARK_EVERY // len(steps), _MARK_EVERY)
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "marker": look.marker}
        panel.plot(_BANDWIDTHS, drawn[-1], **style, markevery=marks, label=group.label)
    if plain:
        drawn.append(_seconds(plain, workers))
        panel.plot(_BANDWIDTHS, drawn[-1], color="0.4", linestyle=":", zorder=1, gid="bf16")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(_BANDWIDTHS[0], _BANDWIDTHS[-1])
    edges = bounds(np.concatenate(drawn).tolist(), logarithmic=True)
    if edges:
        panel.set_ylim(*edges)
    panel.set_xticks([1e6, 1e8, 1e10])
    panel.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: shown_bandwidth(bits)))
    panel.set_xlabel("bandwidth of each link")
    panel.set_ylabel("seconds per step")
    panel.set_title(f"{workers} workers")


def _is_plain(run: Run) -> bool:
    return run.method == "bf16" and run.params.get("exchange.every", "null") == "null"


def _seconds(step: Step, workers: int) -> list[float]:
    return [step.seconds(workers, Link("", bits)) for bits in _BANDWIDTHS]
