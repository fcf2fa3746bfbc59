"""Runs as MLflow recorded them: one type, for whoever writes them and whoever reads them, and one lookup.

`read_runs` takes from a database whose tables are known only what is asked for, straight from them
(`lqray.store.tables`): MLflow's search loads every param, metric and tag of every run. Every other store is read
through MLflow's client, and both ways give the same runs. `find_runs`, which wants few, asks the client."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lqray.experiment.foreign import in_line, whole_number
from lqray.experiment.store import as_argument
from lqray.store import tables
from lqray.store.client import reading_client
from lqray.store.errors import NoStoreError
from lqray.store.experiments import active_experiments, experiment_id
from lqray.store.tags import ATTEMPT, DIFFERENCE, EARLY, ERROR, GROUP, NAN_METRICS, TRIAL_ID, TRIAL_NAME

_INFINITY = 1.797e308
"""MLflow stores an infinite metric as the largest float64."""
_PAGE = 1000
_LEAST_OF_AN_ID = 4


class UnknownRunError(LookupError):
    """No run, or several trials', of this name or id."""


@dataclass(frozen=True)
class Run:
    """One recorded run of a trial.

    status: MLflow's, or MISSING for a trial of a plan that has no run. params: as MLflow keeps them, as text. metrics:
    the last value of each; NaN for those that ended so. tags: lqray's. started, ended: seconds since the epoch.
    other_names: that MLflow has for it, and that it and earlier attempts at its trial were recorded under: a trial is
    called by what varies in its experiment's file, which changes.
    """

    run_id: str
    trial_id: str
    name: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    experiment: str = ""
    ended: float | None = None
    other_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that its trial was ever called, the present name first."""
        return (self.name, *self.other_names)

    def called(self, name: str) -> Run:
        """The same under another name; those of before still find it."""
        return replace(self, name=name, other_names=tuple(one for one in dict.fromkeys(self.names) if one != name))

    @property
    def method(self) -> str:
        """Of its quantizer."""
        return self.params.get("quantizer.method", "?")

    @property
    def attempt(self) -> int:
        """Counts the trial's runs in its experiment, from 1."""
        return whole_number(self.tags.get(ATTEMPT, "1"), 1)

    @property
    def order(self) -> tuple[int, float, str]:
        """Of a trial's runs the latest is that of the last attempt. Clocks of machines differ, and are set back: when a
        run began decides only between runs of one attempt, as earlier versions of lqray could make them."""
        return self.attempt, self.started, self.run_id

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended it: it stays so."""
        return self.status == "KILLED" and EARLY in self.tags

    def is_called(self, name: str) -> bool:
        """Whether this is a name of its trial, or an id, or the beginning of one (from four letters)."""
        return name in self.names or self.has_id(name)

    def has_id(self, beginning: str) -> bool:
        """Whether its id, or its trial's, begins so; of fewer than four letters none does."""
        return len(beginning) >= _LEAST_OF_AN_ID and any(
            one.startswith(beginning) for one in (self.trial_id, self.run_id)
        )

    @property
    def over(self) -> bool:
        """Whether no launch goes on with its trial, unless it is asked for another attempt."""
        return self.status == "FINISHED" or (self.status != "FAILED" and EARLY in self.tags)

    @property
    def state(self) -> str:
        """As people say it: finished, running, failed, killed, stopped early, missing."""
        return "stopped early" if self.stopped_early else self.status.lower()


def read_runs(
    uri: str,
    experiment: str,
    tags: Collection[str] | None = None,
    metrics: Collection[str] | None = None,
    params: bool = True,
) -> list[Run]:
    """lqray's runs of an experiment, oldest first; [] where the experiment, or the store, does not exist: nothing is
    made. Deleted runs and those of other tools are left out. uri: absolute store.

    tags, metrics: those wanted; without them all that was recorded. params: whether they are wanted. What a run is
    known by comes always. Raises StoreError, StoreAwayError.
    """
    known = None if tags is None else {TRIAL_ID, TRIAL_NAME, ATTEMPT, NAN_METRICS, EARLY, ERROR, *tags}
    try:
        return tables.read(
            uri,
            lambda connection: list(_from_tables(connection, experiment, known, metrics, params)),
            lambda client: list(_from_search(client, experiment, known, metrics, params)),
        )
    except NoStoreError:
        return []


def latest_runs(
    uri: str, experiment: str, tags: Collection[str] = (), metrics: Collection[str] = (), params: bool = False
) -> dict[str, Run]:
    """By trial id, the run of the last attempt; see `read_runs`."""
    return {one.trial_id: one for one in latest_attempts(read_runs(uri, experiment, tags, metrics, params))}


def recorded_names(uri: str, experiment: str) -> dict[str, tuple[str, ...]]:
    """By trial id, all names that its runs in an experiment were recorded under; nothing without any. Raises as
    `read_runs`."""
    return {trial_id: one.names for trial_id, one in latest_runs(uri, experiment).items()}


def param_values(uri: str, experiment: str, key: str) -> set[str]:
    """What a param is in the runs of an experiment; nothing without any. Raises as `read_runs`."""
    try:
        return tables.read(
            uri,
            lambda connection: {value for (value,) in tables.param_values_of(connection, experiment, key)},
            lambda client: {
                run.params[key] for run in _from_search(client, experiment, (TRIAL_ID,), (), True) if key in run.params
            },
        )
    except NoStoreError:
        return set()


def latest_attempts(runs: Iterable[Run]) -> list[Run]:
    """Of the runs of each trial the last attempt, in the order of the first ones; it has the names of the others, too.
    runs: of one experiment."""
    attempts: dict[str, list[Run]] = {}
    for one in runs:
        attempts.setdefault(one.trial_id, []).append(one)
    return [_latest(each) for each in attempts.values()]


def _latest(attempts: list[Run]) -> Run:
    last = max(attempts, key=lambda one: one.order)
    names = dict.fromkeys(name for one in (last, *attempts) for name in one.names)
    return replace(last, other_names=tuple(names)[1:]) if len(names) > 1 else last


def find_runs(uri: str, name: str, experiment: str | None = None) -> list[Run]:
    """Runs of lqray whose trial was ever recorded under this name, of this run id or trial id or the beginning of one
    (from four letters), and all attempts at their trials, oldest first; of any experiment, unless one is given. Raises
    UnknownExperimentError, StoreError, StoreAwayError."""
    client = reading_client(uri)
    if experiment:
        names = {experiment_id(uri, experiment): experiment}
    else:
        names = {found.id: name for name, found in active_experiments(uri).items()}
    conditions = [f"{key} = '{_quoted(name)}'" for key in (f"tags.`{TRIAL_NAME}`", "attributes.run_name")]
    if len(name) >= _LEAST_OF_AN_ID and name.isalnum():
        conditions += [f"tags.`{TRIAL_ID}` LIKE '{name}%'", f"attributes.run_id LIKE '{name}%'"]
    runs: dict[str, Run] = {}

    def add(condition: str, experiments: list[str]) -> None:
        for found in _pages(client, experiments, condition):
            for one in _of_client(found, None, None, True, names[found.info.experiment_id]):
                runs[one.run_id] = one

    for condition in conditions if names else ():
        add(condition, list(names))
    for trial_id in {one.trial_id for one in runs.values()}:
        add(f"tags.`{TRIAL_ID}` = '{_quoted(trial_id)}'", list(names))
    return sorted(runs.values(), key=lambda one: one.started)


def only_trial(uri: str, name: str, found: Iterable[Run]) -> Run:
    """The last attempt among runs that `find_runs` found for a name: that of the trial that is called so now, before
    those that once were. Raises UnknownRunError unless they are exactly one trial's."""
    runs = sorted(found, key=lambda one: one.order)
    experiments = dict.fromkeys(one.experiment for one in runs)
    last = [one for each in experiments for one in latest_attempts(run for run in runs if run.experiment == each)]
    by_id = [one for one in runs if one.run_id == name]  # an attempt itself, whichever it is
    now = [one for one in last if one.name == name]
    trials = {(one.experiment, one.trial_id): one for one in by_id or now or last}
    if len(trials) == 1:
        return next(iter(trials.values()))
    if not trials:
        raise UnknownRunError(
            f"found no run {name!r} in {uri}; allowed: the name or the id of a trial, or a run id. `lqray expand FILE` "
            f"lists the trials of a file, `lqray report {as_argument('EXPERIMENT', uri)} --group-by trial --format "
            "json` those that are recorded"
        )
    some = list(trials.values())[:5]
    several = ", ".join(
        in_line(f"{one.name} of {one.experiment} (trial {one.trial_id}, run {one.run_id})") for one in some
    )
    raise UnknownRunError(f"found {len(trials)} trials called {name!r}: {several}; give an id, or --experiment")


def number(value: float, is_nan: bool = False) -> float:
    """A stored metric as the number that was logged."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) > _INFINITY else value


def run_of(found: Any) -> Run | None:
    """A run that MLflow's client gave, with all that is known of it; None for one of another tool."""
    return next(_of_client(found, None, None, True, ""), None)


def _from_tables(
    connection: Any,
    experiment: str,
    wanted: Collection[str] | None,
    wanted_metrics: Collection[str] | None,
    with_params: bool,
) -> Iterator[Run]:
    intern = sys.intern  # thousands of runs share their keys and most of their values
    tags: dict[str, dict[str, str]] = {}
    for run_id, key, value in tables.tags_of(connection, experiment, wanted):
        tags.setdefault(run_id, {})[intern(key)] = value
    params: dict[str, dict[str, str]] = {}
    for run_id, key, value in tables.params_of(connection, experiment) if with_params else ():
        params.setdefault(run_id, {})[intern(key)] = intern(value)
    metrics: dict[str, dict[str, float]] = {}
    for run_id, key, last, is_nan in tables.latest_metrics_of(connection, experiment, wanted_metrics):
        metrics.setdefault(run_id, {})[intern(key)] = number(last, is_nan)
    for known in tables.runs_of(connection, experiment):
        parts = (params.get(known[0], {}), metrics.get(known[0], {}), tags.get(known[0], {}))
        yield from _run(known, *parts, experiment, wanted_metrics)


def _from_search(
    client: Any,
    experiment: str,
    wanted: Collection[str] | None,
    wanted_metrics: Collection[str] | None,
    with_params: bool,
) -> Iterator[Run]:
    found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage == "deleted":
        return
    for one in _pages(client, [found.experiment_id], f"tags.`{TRIAL_ID}` != ''"):
        yield from _of_client(one, wanted, wanted_metrics, with_params, experiment)


def _pages(client: Any, experiments: list[str], condition: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(
            experiments, condition, max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _of_client(
    found: Any,
    wanted: Collection[str] | None,
    wanted_metrics: Collection[str] | None,
    with_params: bool,
    experiment: str,
) -> Iterator[Run]:
    info, data = found.info, found.data
    tags = {key: value for key, value in data.tags.items() if (wanted is None or key in wanted)}
    metrics = {
        key: number(value) for key, value in data.metrics.items() if wanted_metrics is None or key in wanted_metrics
    }
    known = info.run_id, info.run_name, info.status, info.start_time, info.end_time
    yield from _run(known, data.params if with_params else {}, metrics, tags, experiment, wanted_metrics)


def _run(
    known: tuple[str, str, str, int | None, int | None],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    experiment: str,
    wanted_metrics: Collection[str] | None,
) -> Iterator[Run]:
    """None of another tool's. MLflow is not told of NaN, and has the value before it as the last."""
    if TRIAL_ID not in tags:
        return
    lost = [key for key in tags.get(NAN_METRICS, "").split(",") if key]
    nan = [key for key in lost if wanted_metrics is None or key in wanted_metrics]
    ended_as = {**metrics, **dict.fromkeys(nan, math.nan)}
    own = {key: value for key, value in tags.items() if key.startswith("lqray.")}
    if wanted_metrics is None:  # what is made of other runs, for the UI, is not recorded
        ended_as.pop(DIFFERENCE, None)
        own.pop(GROUP, None)
    run_id, name, status, started, ended = known
    yield Run(
        run_id,
        tags[TRIAL_ID],
        tags.get(TRIAL_NAME, name),
        status,
        params,
        ended_as,
        tags.get(ERROR),
        own,
        (started or 0) / 1000,
        experiment,
        ended / 1000 if ended else None,
        (name,) if name and name != tags.get(TRIAL_NAME, name) else (),
    )


def _quoted(text: str) -> str:
    """Inside single quotes of MLflow's search, which knows no escape."""
    return text.replace("'", "_")
