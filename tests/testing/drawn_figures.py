"""Figures of known histories, and what is seen on them."""

import numpy as np
from click.testing import CliRunner
from matplotlib.colors import to_hex

from lqray.cli import main
from lqray.reporting.figures import load_kind
from lqray.reporting.figures.recordings import Options
from lqray.reporting.figures.style import styled
from lqray.reporting.planned import Recorded
from lqray.reporting.plot import Request, recordings_of

STEPS = (100, 200, 300)
ACCURACY = {
    "full_precision": {1: (0.5, 0.8, 0.9), 2: (0.6, 0.7, 0.92), 3: (0.4, 0.75, 0.88)},
    "alq": {1: (0.45, 0.75, 0.89), 2: (0.55, 0.72, 0.9), 3: (0.5, 0.7, 0.87)},
    "nuqsgd": {1: (0.3, 0.5, 0.6), 2: (0.35, 0.52, 0.63), 3: (0.25, 0.41, 0.65)},
}


def at_steps(values, steps=STEPS):
    """A metric's values by step."""
    return dict(zip(steps, values, strict=True))


def drawn(store, kind, request=None, **options):
    """(figure, remarks) of a kind."""
    names = [Recorded(name, store.uri) for name in store.numbers]
    recordings = recordings_of(names, request or Request(kind))
    with styled():
        return load_kind(kind).draw(recordings, Options(**options)), recordings.remarks


def lines(axes):
    """By label, lines of groups."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def bands(axes):
    """(low, high, x) of each band, by its colour."""
    found = {}
    for band in axes.collections:
        vertices = band.get_paths()[0].vertices
        at = np.unique(vertices[:, 0])
        low = [vertices[vertices[:, 0] == x, 1].min() for x in at]
        high = [vertices[vertices[:, 0] == x, 1].max() for x in at]
        found[to_hex(band.get_facecolor()[0])] = (low, high, at)
    return found


def marked(axes, gid):
    """The lines that a figure calls so: learning-rate drops, targets, runs."""
    return [line for line in axes.get_lines() if line.get_gid() == gid]


def legend_of(figure):
    """(title, entries)."""
    (legend,) = figure.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def plotted(store, *arguments):
    """`lqray plot`, in this process."""
    return CliRunner().invoke(main, ["plot", *arguments, "--uri", store.uri])
