"""Trials of an experiment that a pattern chooses: `--only`, `lqray stop`."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from lqray.experiment.grid import Experiment, NamedTrial

_SHOWN = 8
_LEAST_OF_AN_ID = 4
_MOST_COMPARED = 5000
"""So many names are compared with one that none is equal to."""
_MOST_LETTERS = 200


Former = Callable[[Experiment], Mapping[str, Collection[str]]]
"""By trial id, names that runs of an experiment were recorded under."""


def matching(pattern: str) -> Callable[[NamedTrial], bool]:
    """Trials whose name a shell pattern matches, or whose id begins with it."""
    return lambda named: (
        fnmatch.fnmatchcase(named.name, pattern)
        or (len(pattern) >= _LEAST_OF_AN_ID and named.trial.id.startswith(pattern))
    )


class NothingChosenError(ValueError):
    """A pattern that no trial of a file fits."""


def chosen(experiment: Experiment, only: Sequence[str]) -> Iterator[NamedTrial]:
    """The trials of an experiment's file that one of the patterns matches; all of them without patterns. Raises
    ExperimentError for a trial that is not valid."""
    fits = [matching(pattern) for pattern in only]
    return (named for named in experiment.trials() if not fits or any(one(named) for one in fits))


def check_chosen(
    experiments: Sequence[Experiment], only: Sequence[str], former: Former = lambda _: {}
) -> tuple[str, ...]:
    """The patterns; in the place of one that fits no name of the files, ids of those of their trials that were once
    called so. Trials that a search suggests have no names before. former: is asked where a pattern fits nothing. Raises
    NothingChosenError for one that fits no trial at all, ExperimentError for a trial that is not valid."""
    if any(experiment.adaptive for experiment in experiments):
        return tuple(only)
    left = {pattern: matching(pattern) for pattern in only}
    names: list[str] = []
    for named in itertools.chain.from_iterable(experiment.trials() for experiment in experiments if left):
        left = {pattern: fits for pattern, fits in left.items() if not fits(named)}
        if not left:
            break
        if len(names) <= _MOST_COMPARED:
            names.append(named.name)
    found = [pattern for pattern in only if pattern not in left]
    for pattern in left:
        ids = _once_called(experiments, pattern, former)
        if not ids:
            raise NothingChosenError(
                f"--only {pattern}: found no trial of such a name, or whose id begins so; {near_names(pattern, names)}"
            )
        found += ids
    return tuple(found)


def _once_called(experiments: Sequence[Experiment], pattern: str, former: Former) -> list[str]:
    """Ids of trials of the files that have such a former name."""
    ids = {
        trial_id
        for experiment in experiments
        for trial_id, names in former(experiment).items()
        if any(fnmatch.fnmatchcase(name, pattern) for name in names)
    }
    trials = itertools.chain.from_iterable(experiment.trials() for experiment in experiments if ids)
    return [named.trial.id for named in trials if named.trial.id in ids]


def near_names(pattern: str, names: Iterable[str]) -> str:
    """What to say of a pattern that matches none of the names: those that look most like it, and some of what there
    is."""
    known = list(itertools.islice(dict.fromkeys(names), _MOST_COMPARED))
    near = difflib.get_close_matches(re.sub(r"[*?\[\]]", "", pattern)[:_MOST_LETTERS], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    more = f", ... ({len(known) - _SHOWN} more)" if len(known) > _SHOWN else ""
    return f"{hint}allowed: {', '.join(known[:_SHOWN])}{more}"
