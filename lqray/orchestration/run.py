"""One `lqray run` of one experiment: plan, claim, launch, record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lqray.experiment.grid import Experiment, NamedTrial, experiment_from_text
from lqray.experiment.schema import Trial
from lqray.experiment.store import absolute_store
from lqray.orchestration.control import matching, publish_plan
from lqray.orchestration.history import History, expected
from lqray.orchestration.inline import InlineLauncher
from lqray.orchestration.launcher import Launcher, LaunchInterrupted, Observer, TrialResult, Work
from lqray.orchestration.leases import Holder
from lqray.orchestration.ledger import TAGS, Ledger, Planned, planned
from lqray.orchestration.placement import backend_of, processes_of
from lqray.orchestration.provenance import code_version, provenance
from lqray.orchestration.queue import Given, Limits, TrialQueue
from lqray.orchestration.states import TrialState, read_states
from lqray.orchestration.stop_rules import StopRule
from lqray.orchestration.sweep import RayLauncher
from lqray.orchestration.tracking import Launch, open_launch
from lqray.orchestration.worker import WorkerTask

WARM_SECONDS = 60.0
"""Trials expected to take less than this share a warm worker group by default."""

LauncherName = Literal["auto", "isolated", "warm", "inline"]


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


@dataclass(frozen=True)
class Plan:
    """What a launch is going to do: every trial of the file that `--only` leaves, and how each stands."""

    uri: str
    trials: Sequence[Planned]
    states: dict[str, TrialState]
    limit: int | None = None

    @property
    def due(self) -> list[NamedTrial]:
        """Trials that will be run, in order."""
        return [one.named for one in self.trials if one.due][: self.limit]


@dataclass
class Ran:
    """What came of a launch. elsewhere: trials that another launch holds, by id."""

    launch: Launch
    results: list[TrialResult] = field(default_factory=list)
    elsewhere: dict[str, Holder | None] = field(default_factory=dict)
    interrupted: bool = False


def make_plan(experiment: Experiment, options: RunOptions) -> Plan:
    """Read the store and say what is to be done. Raises ExperimentError for a trial that is not valid."""
    uri = absolute_store(experiment.tracking.uri)
    states = read_states(uri, experiment.name, TAGS)
    chosen = [matching(pattern) for pattern in options.only]
    trials = [
        planned(named, states, options.rerun)
        for named in experiment.trials()
        if not chosen or any(one(named) for one in chosen)
    ]
    return Plan(uri, trials, states, options.limit)


def run_plan(experiment: Experiment, source: str, plan: Plan, options: RunOptions, observer: Observer) -> Ran:
    """Run what is due. source: text of the experiment file. Raises PlacementError, ClusterError, StoreAwayError."""
    due, resources = plan.due, experiment.resources
    for trial in shapes(due):
        processes_of(trial, resources)
    launch = open_launch(plan.uri, experiment.name, experiment.document.file, source, provenance())
    ran = Ran(launch)
    if not due:
        return ran
    code, backend = code_version(), backend_of(resources)

    def make_task(work: Work) -> WorkerTask:
        trial = work.named.trial
        return WorkerTask(
            trial.id,
            work.named.name,
            trial.config(),
            resources,
            experiment.storage,
            str(work.folder),
            work.run_id,
            work.start,
            backend,
            code,
            options.stop_rules,
        )

    with Ledger(launch, experiment.name, experiment.storage, plan.states, options.rerun) as ledger:
        if options.whole:
            publish_plan(launch)
        queue = TrialQueue(Given(due), ledger, observer, ran.results.append, Limits(options.max_failures))
        ledger.watch(queue, lambda text: _still_wanted(text, experiment.document.file))
        name = options.launcher
        stopping = experiment.search.early_stopping if experiment.search else None
        if name == "auto":
            name = "warm" if quick(experiment, plan) else "isolated"
        launcher: Launcher
        if name == "inline":
            launcher = InlineLauncher(ledger, resources, make_task)
        else:
            launcher = RayLauncher(ledger, resources, make_task, shapes(due), name == "warm", stopping, options.verbose)
        try:
            launcher.launch(queue)
        except LaunchInterrupted:
            ran.interrupted = True
        finally:
            queue.interrupt()
        ran.elsewhere = dict(ledger.elsewhere)
    return ran


def quick(experiment: Experiment, plan: Plan) -> bool:
    """Whether none of the trials is expected to take a minute, by earlier runs or else by arithmetic; GPUs are not
    guessed at."""
    history = History(plan.uri, experiment.name)
    if experiment.resources.gpus_per_process and history.empty:
        return False
    longest = 0.0
    seen: set[tuple[int, ...]] = set()
    for named in plan.due:
        trial = named.trial
        shape = (trial.workers, id(trial.data), id(trial.model), id(trial.schedule), id(trial.quantizer))
        if shape not in seen:
            seen.add(shape)
            _, seconds, _ = expected(trial, experiment.resources, history)
            longest = max(longest, WARM_SECONDS if seconds is None else seconds)
    return longest < WARM_SECONDS


def shapes(trials: Sequence[NamedTrial]) -> list[Trial]:
    """One trial for each number of workers."""
    found: dict[int, Trial] = {}
    for named in trials:
        found.setdefault(named.trial.workers, named.trial)
    return list(found.values())


def _still_wanted(text: str, file: str) -> Callable[[NamedTrial], bool]:
    """Which trials a newer version of the experiment file has."""
    ids = {named.trial.id for named in experiment_from_text(text, file).trials()}
    return lambda named: named.trial.id in ids
