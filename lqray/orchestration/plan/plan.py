"""What a launch is going to do, from the experiment's file and how its trials stand in the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lqray.experiment.choice import chosen
from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.sampling import corner
from lqray.experiment.schema import Trial
from lqray.experiment.store import absolute_store
from lqray.orchestration.origins import NAMES, DataOfNow, others
from lqray.orchestration.plan.draws import stored_draws
from lqray.orchestration.plan.history import History, expected
from lqray.orchestration.worker.task import StopRule
from lqray.store.experiments import check_usable
from lqray.store.outage import patiently
from lqray.store.runs import Run, latest_runs
from lqray.store.tags import ATTEMPT, EARLY, FAILURE, FOLDER, HOLDER, MODEL_STATE

WARM_SECONDS = 60.0
"""Trials expected to take less than this share a warm worker group by default."""
TAGS = (ATTEMPT, EARLY, FAILURE, FOLDER, HOLDER, MODEL_STATE, *NAMES)
"""Of a run, what a launch goes by."""


LauncherName = Literal["auto", "isolated", "warm", "inline"]


@dataclass(frozen=True)
class Budget:
    """Hours of wall time that a launch may take, from `since`, on the clock of `time.monotonic`."""

    hours: float
    since: float

    @property
    def left(self) -> float:
        """Seconds; 0 once they are over."""
        return max(0.0, self.since + self.hours * 3600 - time.monotonic())

    @property
    def why(self) -> str:
        """What is said of trials that are stopped, or not begun, since they are over."""
        return f"the hours of --max-hours {self.hours:.10g} are over"


@dataclass(frozen=True)
class RunOptions:
    """The options of `lqray run`; see its help. whole: the file was read as it is, without `--set`."""

    launcher: LauncherName = "auto"
    only: tuple[str, ...] = ()
    limit: int | None = None
    rerun: bool = False
    max_failures: int | None = None
    stop_rules: tuple[StopRule, ...] = ()
    verbose: bool = False
    whole: bool = True
    budget: Budget | None = None


@dataclass(frozen=True)
class Planned:
    """What is to be done with a trial. what: run, continue, retry, done, early (stopped early; it stays so), rerun."""

    named: NamedTrial
    what: str

    @property
    def due(self) -> bool:
        """Whether the launch runs it."""
        return self.what in ("run", "continue", "retry", "rerun")


def planned(named: NamedTrial, runs: Mapping[str, Run], rerun: bool) -> Planned:
    """What `lqray run` does with a trial, from how it stands in the store. runs: by trial id."""
    run = runs.get(named.trial.id)
    if run is None or rerun:
        return Planned(named, "run" if run is None else "rerun")
    if run.over:
        return Planned(named, "done" if run.status == "FINISHED" else "early")
    return Planned(named, "retry" if run.status == "FAILED" else "continue")


@dataclass(frozen=True)
class Plan:
    """What a launch is going to do: every trial of the file that `--only` leaves. runs: by trial id, the latest of
    each in the store."""

    experiment: Experiment
    uri: str
    trials: Sequence[Planned]
    runs: dict[str, Run]
    limit: int | None = None
    more: int = 0
    """Trials that an adaptive search will suggest."""
    observed: Sequence[tuple[dict[str, Any], float]] = ()
    """Of such a search: values and metric of finished trials."""

    @property
    def due(self) -> list[NamedTrial]:
        """Trials that will be run, in order."""
        return [one.named for one in self.trials if one.due][: self.limit]

    @property
    def said_of_others(self) -> str:
        """How many of the trials that are over had other code of their parts, or other data, than is here now, in
        brackets; "" where there are none."""
        over = [(one.named.trial, self.runs[one.named.trial.id].tags) for one in self.trials if not one.due]
        data = DataOfNow()
        counts = Counter(word for trial, tags in over for word in others(tags, trial, data))
        said = [f"{counts[word]:,} finished with other {word}" for word in NAMES.values() if counts[word]]
        return f" ({', '.join(said)}: --rerun)" if said else ""

    @property
    def over(self) -> bool:
        """Whether there is nothing to be done."""
        return not self.due and not self.more

    @property
    def examples(self) -> list[NamedTrial]:
        """The trials that are due, and, where a search will suggest others, two as they may be."""
        search = self.experiment.search
        if not self.more or search is None:
            return self.due
        return [*self.due, *(self.experiment.suggested(corner(search, high)) for high in (False, True))]

    @property
    def shapes(self) -> list[Trial]:
        """One of these for each number of workers: they need as much as any of those to come."""
        found: dict[int, Trial] = {}
        for named in self.examples:
            found.setdefault(named.trial.workers, named.trial)
        return list(found.values())


def make_plan(experiment: Experiment, options: RunOptions) -> Plan:
    """Read the store and say what is to be done. Raises ExperimentError for a trial that is not valid; StoreError,
    StoreAwayError."""
    uri = absolute_store(experiment.tracking.uri)
    patiently(lambda: check_usable(uri, experiment.name))
    runs = patiently(lambda: latest_runs(uri, experiment.name, TAGS, [experiment.headline.metric]))
    if experiment.adaptive and experiment.search:
        draws = patiently(lambda: stored_draws(uri, experiment))
        known = [planned(named, runs, False) for named, _, _ in draws.values()]
        observed = [(values, metric) for _, values, metric in draws.values() if metric is not None]
        more = max(0, experiment.search.samples - len(known))
        return Plan(experiment, uri, known, runs, options.limit, min(more, options.limit or more), observed)
    trials = [planned(named, runs, options.rerun) for named in chosen(experiment, options.only)]
    return Plan(experiment, uri, trials, runs, options.limit)


def quick(plan: Plan) -> bool:
    """Whether none of the trials is expected to take a minute, by earlier runs or else by arithmetic; GPUs are not
    guessed at."""
    experiment = plan.experiment
    history = History(plan.uri, experiment.name)
    if experiment.resources.gpus_per_process and history.empty:
        return False
    longest = 0.0
    seen: set[tuple[int, ...]] = set()
    for named in plan.examples:
        trial = named.trial
        shape = (trial.workers, id(trial.data), id(trial.model), id(trial.schedule), id(trial.quantizer))
        if shape not in seen:
            seen.add(shape)
            _, seconds, _ = expected(trial, experiment.resources, history)
            longest = max(longest, WARM_SECONDS if seconds is None else seconds)
    return longest < WARM_SECONDS
