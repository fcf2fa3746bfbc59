"""Final accuracy against bits, a line for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lqray.reporting.figures.against import draw_against
from lqray.reporting.figures.recordings import Options, Recordings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAKES = frozenset({"metrics", "group_by"})


def draw(recordings: Recordings, options: Options) -> Figure:
    """See `draw_against`."""
    return draw_against(recordings, options, "quantizer.bits", "bits.yaml")
