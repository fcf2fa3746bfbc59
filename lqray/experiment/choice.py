"""Trials of an experiment that a pattern chooses: `--only`, `lqray stop`."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterator, Sequence

from lqray.experiment.grid import Experiment, NamedTrial

_SHOWN = 8


def matching(pattern: str) -> Callable[[NamedTrial], bool]:
    """Trials whose name a shell pattern matches, or whose id begins with it."""
    return lambda named: (
        fnmatch.fnmatchcase(named.name, pattern) or (len(pattern) >= 4 and named.trial.id.startswith(pattern))
    )


class NothingChosenError(ValueError):
    """A pattern that no trial of a file fits."""


def chosen(experiment: Experiment, only: Sequence[str]) -> Iterator[NamedTrial]:
    """The trials of an experiment's file that one of the patterns matches; all of them without patterns. Raises
    ExperimentError for a trial that is not valid."""
    fits = [matching(pattern) for pattern in only]
    return (named for named in experiment.trials() if not fits or any(one(named) for one in fits))


def check_chosen(experiments: Sequence[Experiment], only: Sequence[str]) -> None:
    """Raise NothingChosenError for a pattern that matches no trial of any of the files; trials that a search suggests
    have no names before. Raises ExperimentError for a trial that is not valid."""
    if any(experiment.adaptive for experiment in experiments):
        return
    left = {pattern: matching(pattern) for pattern in only}
    some: list[str] = []
    for named in itertools.chain.from_iterable(experiment.trials() for experiment in experiments if left):
        left = {pattern: fits for pattern, fits in left.items() if not fits(named)}
        if not left:
            return
        if len(some) <= _SHOWN:
            some.append(named.name)
    if left:
        raise NothingChosenError(
            f"--only {next(iter(left))}: found no trial of such a name, or whose id begins so; allowed: "
            f"{', '.join(some[:_SHOWN])}{', ...' if len(some) > _SHOWN else ''}"
        )
