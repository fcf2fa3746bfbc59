"""How figures look, and how they are written: for a column of a paper (3.4 inches) or both (7), 8 pt, the same bytes
for the same records.

Settings hold within `styled()` only; what the user's own matplotlibrc says does not matter. A legend stands below the
panels, where it hides nothing; the figure grows by its height.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lqray.experiment.foreign import in_figure
from lqray.reporting.methods import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FORMATS = ("png", "svg", "pdf")
WIDTHS = {"single": 3.4, "double": 7.0}
MOST_IN_LEGEND = 24
MOST_PANELS = 12
_INCHES_PER_LETTER, _INCHES_PER_HANDLE, _INCHES_PER_ROW = 0.062, 0.42, 0.145
_SETTINGS: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.0,
    "legend.borderpad": 0.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 3,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "lqray",
}
_METADATA: Mapping[str, Mapping[str, str | None]] = {
    "png": {"Software": "lqray"},
    "svg": {"Date": None, "Creator": "lqray"},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": "lqray", "Producer": None},
}


@contextmanager
def styled() -> Iterator[None]:
    """Within, matplotlib draws and writes as described above."""
    from matplotlib import style

    with style.context(["default", dict(_SETTINGS)]):
        yield


def panels(width: str, count: int, height: float = 2.1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `height` inches high, in at most `columns`."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTHS[width], rows * height), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def even_columns(count: int, most: int) -> int:
    """Of `count` panels in rows of at most `most`, so that the last row is as full as can be."""
    return math.ceil(count / math.ceil(count / most))


def handle(own: Look, **more: Any) -> Line2D:
    """A legend's entry of a group."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=own.colour, ls=own.dashes, marker=own.marker, **more)


def legend(figure: Figure, entries: Sequence[tuple[Any, str]], title: str = "") -> None:
    """Below the panels, in as many columns as the width has place for; of more than 24 entries the rest are counted."""
    from matplotlib.lines import Line2D

    if not entries and not title:
        return
    shown = list(entries)
    if len(shown) > MOST_IN_LEGEND:
        more = len(shown) - MOST_IN_LEGEND + 1
        shown = [*shown[: MOST_IN_LEGEND - 1], (Line2D([], [], linestyle=""), f"and {more} more")]
    width, height = figure.get_size_inches()
    shown = [(one, wrapped(label, width - _INCHES_PER_HANDLE)) for one, label in shown]
    columns = _columns([max(map(len, label.split("\n"))) for _, label in shown], width)
    rows = math.ceil(sum(label.count("\n") + 1 for _, label in shown) / columns)
    figure.set_size_inches(width, height + _INCHES_PER_ROW * (rows + bool(title)) + 0.1)
    handles, labels = [one for one, _ in shown], [label for _, label in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title or None)


def wrapped(label: str, inches: float) -> str:
    """In lines that fit; see `in_figure`."""
    return textwrap.fill(in_figure(label), max(8, int(inches / _INCHES_PER_LETTER)))


def _columns(letters: Sequence[int], width: float) -> int:
    """The most that fit side by side; matplotlib fills column after column, the first ones with one more."""
    for columns in range(len(letters), 1, -1):
        rows, longer = divmod(len(letters), columns)
        ends = list(itertools.accumulate(rows + (column < longer) for column in range(columns)))
        widest = [max(letters[end - rows - (column < longer) : end]) for column, end in enumerate(ends)]
        if sum(widest) * _INCHES_PER_LETTER + columns * _INCHES_PER_HANDLE <= width:
            return columns
    return 1


def bounds(values: Sequence[float], logarithmic: bool) -> tuple[float, float] | None:
    """Limits of an axis that show all finite `values` (positive ones, on a logarithmic axis) with a margin; None
    without any."""
    usable = [one for one in values if math.isfinite(one) and (one > 0 or not logarithmic)]
    if not usable:
        return None
    low, high = min(usable), max(usable)
    if logarithmic:
        margin = max((high / low) ** 0.05, 1.15)
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def shown_name(metric: str) -> str:
    """A metric as an axis names it: test/accuracy is test accuracy, wire/bytes_sent is bytes sent."""
    section, _, name = metric.rpartition("/")
    kept = section if section in ("train", "test") else "level" if section.endswith("level") else ""
    return in_figure(f"{kept} {name}".strip().replace("_", " "))


def write(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """STEM.FORMAT for each, whole or not at all. Within `styled()`. Raises OSError, which names the file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for shape in formats:
        file = stem.with_name(f"{stem.name}.{shape}")
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        drawn = io.BytesIO()  # first: matplotlib meets a full disk with errors of its own
        figure.savefig(drawn, format=shape, metadata=dict(_METADATA[shape]))
        try:
            aside.write_bytes(drawn.getvalue())
            aside.replace(file)
        except OSError as error:
            size = drawn.getbuffer().nbytes
            raise OSError(error.errno, f"{error.strerror} (the figure takes {size:,} bytes)", str(file)) from error
        finally:
            aside.unlink(missing_ok=True)
        files.append(file)
    return files
