"""What one `lqray` process wishes of another's launch, passed through tags of the MLflow experiment."""

from __future__ import annotations

import fnmatch
import itertools
import json
import logging
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lqray.experiment.foreign import in_line, json_value
from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.plan import PLAN, PublishedPlan, plan_tags, published_plan
from lqray.orchestration.deleted_runs import why_deleted
from lqray.orchestration.store_access import client_of, patiently
from lqray.orchestration.tracking import Launch

_STOP = "lqray.stop"
_SHOWN = 8
_log = logging.getLogger(__name__)


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


def ask_to_stop(uri: str, experiment_id: str, pattern: str) -> None:
    """Ask every launch of the experiment to stop the trials that `pattern` matches. Each request has a tag of its own:
    none takes the place of another that no launch has seen yet."""
    key = f"{_STOP}.{secrets.token_hex(8)}"
    request = json.dumps({"pattern": pattern})
    patiently(lambda: client_of(uri).set_experiment_tag(experiment_id, key, request), 30.0)


def publish_plan(launch: Launch) -> None:
    """Tell older launches of the experiment what its file says now: what they have not begun and is no longer in it,
    they drop, if it is their file."""
    client = client_of(launch.uri)
    for key, value in plan_tags(launch.launch_id, launch.source, file_of(launch)).items():
        patiently(lambda key=key, value=value: client.set_experiment_tag(launch.experiment_id, key, value))  # type: ignore[misc]


def file_of(launch: Launch) -> str:
    """Where a launch read its experiment file: HOST:PATH, the end of it where that is very long."""
    return f"{socket.gethostname()}:{Path(launch.file).absolute()}"[-400:]


class Wishes:
    """New wishes of others, as seen from one launch: those made before this was made are not its own."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._client = client_of(launch.uri)
        self._seen: dict[str, str] = patiently(lambda: self._client.get_experiment(launch.experiment_id).tags)
        self._heeded = {item for item in self._seen.items() if _asks_to_stop(item[0])}
        self._plan = self._seen.get(PLAN)
        self._gone = False

    def stops(self) -> Iterator[tuple[Callable[[NamedTrial], bool], str]]:
        """(which trials, why), as they come. Reads the store. Whoever deletes the experiment wishes to stop all."""
        gone = why_deleted(self._client, self._launch.experiment_id, None)
        if gone:
            if not self._gone:
                self._gone = True
                yield matching("*"), gone
            return
        self._seen = self._client.get_experiment(self._launch.experiment_id).tags
        for item in sorted(self._seen.items()):
            if not _asks_to_stop(item[0]) or item in self._heeded:
                continue
            self._heeded.add(item)
            try:
                pattern = str(json_value(item[1])["pattern"])
            except (ValueError, KeyError, TypeError):
                said = (in_line(item[0]), in_line(item[1])[:80])
                _log.warning("the tag %s of the MLflow experiment is no request of `lqray stop`: %s", *said)
                continue
            yield matching(pattern), "lqray stop"

    def newer_plan(self) -> PublishedPlan | None:
        """The experiment file that a newer launch uses, when there is one; as of the last `stops`."""
        plan = self._seen.get(PLAN)
        if plan is None or plan == self._plan:
            return None
        self._plan = plan
        found = published_plan(self._seen)
        return found if found and found.launch != self._launch.launch_id else None


def _asks_to_stop(key: str) -> bool:
    return key == _STOP or key.startswith(f"{_STOP}.")
