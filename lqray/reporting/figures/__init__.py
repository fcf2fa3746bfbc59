"""Figures of records: one file for each kind, whose name is that of `lqray plot --kind`.

Such a file defines `draw(recordings, options) -> matplotlib.figure.Figure` and TAKES, which of `Options` mean something
to it. `draw` raises NothingToDrawError where the records do not hold what it shows. `style` says how figures look and
how they are written, `recordings` what they are of, `seeds` how the runs of a group become a line and a band,
`spread` what of them is shown.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lqray.experiment.names import names_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARED = {"against", "drops", "lines", "recordings", "seeds", "sent", "spread", "style"}


@dataclass(frozen=True)
class Kind:
    """A kind of figure. about: the first line of its module. takes: names of the options that it heeds."""

    name: str
    about: str
    takes: frozenset[str]
    draw: Callable[[Any, Any], Figure]


def kinds() -> tuple[str, ...]:
    """Names of all kinds; imports none."""
    return tuple(name for name in names_in("reporting/figures") if name not in _SHARED)


def load_kind(name: str) -> Kind:
    """The kind of that name, one of `kinds()`."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Kind(name, (module.__doc__ or "").splitlines()[0], frozenset(module.TAKES), module.draw)
