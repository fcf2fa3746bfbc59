"""How a sweep stands: what `orchestration` knows of it and `reporting` puts into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lqray.experiment.headline import ACCURACY, Headline


@dataclass(frozen=True)
class BestTrial:
    """Of one method: the finished trial with the best headline metric, that value, and how many finished."""

    method: str
    name: str
    value: float
    finished: int


@dataclass(frozen=True)
class Standing:
    """Of the trials of an experiment's file.

    question: the comment that the file begins with. axes: values by dotted key. counts: trials by state (finished,
    running, failed, killed, not begun). best: of each method that has finished trials, the best first
    by `headline`.
    command: of the launch that tells; time: seconds since the epoch. searched: a search suggests values of the axes.
    """

    experiment: str
    question: str
    axes: Mapping[str, Sequence[Any]]
    counts: Mapping[str, int]
    best: Sequence[BestTrial]
    command: str
    time: float
    searched: bool = False
    headline: Headline = ACCURACY
