"""One `lqray run` of one experiment: plan, claim, launch, record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lqray.experiment.grid import Experiment, NamedTrial, experiment_from_text
from lqray.experiment.options import EarlyStopping
from lqray.experiment.plan import MOST_TRIALS, PublishedPlan
from lqray.experiment.sampling import corner
from lqray.experiment.schema import Trial
from lqray.experiment.standing import Standing
from lqray.experiment.store import absolute_store, storage_address
from lqray.orchestration.archivist import MODEL_TAG, Archivist, Draw
from lqray.orchestration.cluster import RayLostError
from lqray.orchestration.code_version import training_code
from lqray.orchestration.control import chosen, file_of, publish_plan
from lqray.orchestration.evaluations import Evaluation, stored_evaluations
from lqray.orchestration.feasible import check_places, check_trials
from lqray.orchestration.history import History, expected
from lqray.orchestration.inline import InlineLauncher
from lqray.orchestration.launcher import Launcher, LaunchInterrupted, Observer, TrialResult, Work
from lqray.orchestration.leases import HEARTBEAT_SECONDS, HOLDER_PATIENCE
from lqray.orchestration.ledger import TAGS, Keeping, Ledger, Planned, planned
from lqray.orchestration.narrator import ACCURACY, Narrator
from lqray.orchestration.optuna_source import OptunaSource, stored_draws
from lqray.orchestration.placement import PlacementError, backend_of
from lqray.orchestration.provenance import provenance
from lqray.orchestration.queue import Given, Held, Limits, Source, TrialQueue
from lqray.orchestration.signals import from_here
from lqray.orchestration.states import TrialState, read_states
from lqray.orchestration.stop_rules import StopRule
from lqray.orchestration.store_access import PATIENCE, client_of, patiently
from lqray.orchestration.sweep import RayLauncher
from lqray.orchestration.tracking import Launch, open_launch
from lqray.orchestration.worker import WorkerTask
from lqray.store.experiments import check_usable
from lqray.training.storage import check_folder, open_folder

WARM_SECONDS = 60.0
"""Trials expected to take less than this share a warm worker group by default."""

_HURRIED = 10.0  # seconds that figures and models have after Ctrl-C
_log = logging.getLogger(__name__)

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
class Presentation:
    """How what is recorded is put into words and drawn: `lqray.reporting`, which orchestration does not know. summary:
    the description of an experiment. density: of a run's `density.json`, without which there is no such figure."""

    summary: Callable[[Standing], str] | None = None
    density: Draw | None = None


@dataclass(frozen=True)
class Plan:
    """What a launch is going to do: every trial of the file that `--only` leaves, and how each stands."""

    uri: str
    trials: Sequence[Planned]
    states: dict[str, TrialState]
    limit: int | None = None
    more: int = 0
    """Trials that an adaptive search will suggest."""
    observed: Sequence[tuple[dict[str, Any], float]] = ()
    """Of such a search: values and metric of finished trials."""

    @property
    def due(self) -> list[NamedTrial]:
        """Trials that will be run, in order."""
        return [one.named for one in self.trials if one.due][: self.limit]


@dataclass
class Ran:
    """What came of a launch. elsewhere: trials left to another launch. left_out: trials that were not begun because
    somebody did not want them any more, and why. failed_elsewhere: trials that another launch could not finish.
    halted: why it began no more."""

    launch: Launch
    results: list[TrialResult] = field(default_factory=list)
    elsewhere: list[tuple[NamedTrial, Held]] = field(default_factory=list)
    left_out: list[tuple[NamedTrial, str]] = field(default_factory=list)
    failed_elsewhere: list[NamedTrial] = field(default_factory=list)
    interrupted: bool = False
    halted: str | None = None
    lost: str | None = None
    """What it was interrupted by, when that was the end of the Ray that it ran on."""

    def take(self, result: TrialResult) -> None:
        """One more result, without its snapshot: of ten thousand trials those would fill the memory."""
        self.results.append(replace(result, snapshot=None))


def make_plan(experiment: Experiment, options: RunOptions) -> Plan:
    """Read the store and say what is to be done. Raises ExperimentError for a trial that is not valid; StoreError,
    StoreAwayError."""
    uri = absolute_store(experiment.tracking.uri)
    patiently(lambda: check_usable(uri, experiment.name))
    states = patiently(lambda: read_states(uri, experiment.name, TAGS, [ACCURACY]))
    if experiment.adaptive and experiment.search:
        draws = stored_draws(uri, experiment)
        known = [planned(named, states, False) for named, _, _ in draws.values()]
        observed = [(values, metric) for _, values, metric in draws.values() if metric is not None]
        more = max(0, experiment.search.samples - len(known))
        return Plan(uri, known, states, options.limit, min(more, options.limit or more), observed)
    trials = [planned(named, states, options.rerun) for named in chosen(experiment, options.only)]
    return Plan(uri, trials, states, options.limit)


def check_plan(experiment: Experiment, plan: Plan, options: RunOptions, thorough: bool) -> None:
    """What can be known before the first trial, and is the same for a launch and for its dry run. thorough: see
    `check_trials`; the launchers `auto` and `inline`, and a dry run, need torch for other things, too. Raises
    PlacementError, StorageError, UnfitTrialError."""
    inline = options.launcher == "inline"
    if inline and experiment.search and experiment.search.early_stopping:
        raise PlacementError(
            "search.early_stopping compares trials through Ray Tune; found --launcher inline; allowed: warm, isolated"
        )
    storage_address(experiment.storage.folder)
    examples = _examples(experiment, plan)
    check_places(shapes(examples), experiment.resources, inline)
    check_trials(examples, thorough)


def run_plan(
    experiment: Experiment,
    source: str,
    plan: Plan,
    options: RunOptions,
    observer: Observer,
    presentation: Presentation = Presentation(),
) -> Ran:
    """Run what is due. source: text of the experiment file. Raises PlacementError, StorageError, UnfitTrialError,
    ClusterError, StoreAwayError."""
    from_here("note")  # from now on there is something to record
    due, resources = plan.due, experiment.resources
    check_plan(experiment, plan, options, thorough=options.launcher in ("auto", "inline"))
    examples = _examples(experiment, plan)
    if due or plan.more:
        check_folder(open_folder(f"{storage_address(experiment.storage.folder)}/{experiment.name}"))
    storage = storage_address(experiment.storage.folder)
    launch = open_launch(
        plan.uri, experiment.name, experiment.document.file, source, provenance(), experiment.axes, storage
    )
    ran = Ran(launch)
    tracking = experiment.tracking
    trials = [one.named for one in plan.trials]
    narrator = Narrator(launch, experiment, trials, plan.states, presentation.summary) if presentation.summary else None
    archivist = Archivist(plan.uri, presentation.density if tracking.figures else None)
    _finish_models(plan, archivist)
    if not due and not plan.more:
        archivist.close(PATIENCE)
        _describe(narrator, plan, ran)
        return ran
    source_of_trials: Source = Given(due)
    if plan.more:
        source_of_trials = OptunaSource(
            experiment, due, plan.observed, {one.named.trial.id for one in plan.trials}, plan.more
        )
    code, backend = training_code(), backend_of(resources)
    stopping = experiment.search.early_stopping if experiment.search else None

    def make_task(work: Work) -> WorkerTask:
        trial = work.named.trial
        return WorkerTask(
            trial.id,
            work.named.name,
            trial.config(),
            resources,
            experiment.storage,
            work.folder,
            work.run_id,
            work.start,
            backend,
            code,
            options.stop_rules,
            stopping.metric if stopping else experiment.search.metric if plan.more and experiment.search else None,
            tracking.system_metrics,
            claim=work.claim,
            recorded=work.recorded,
            continued=work.continued,
        )

    keeping = Keeping(archivist, tracking.log_model, narrator)
    with Ledger(launch, experiment.name, experiment.storage, plan.states, options.rerun, keeping) as ledger:
        if options.whole and not experiment.adaptive:
            publish_plan(launch)
        limits = Limits(options.max_failures, held=HOLDER_PATIENCE + 2 * HEARTBEAT_SECONDS)
        queue = TrialQueue(source_of_trials, ledger, observer, ran.take, limits)
        ledger.watch(queue, None if plan.more else lambda newer: _still_wanted(newer, launch))
        name = options.launcher
        if name == "auto":
            name = "warm" if quick(experiment, plan) else "isolated"
        launcher: Launcher
        earlier = _earlier(plan, stopping) if stopping else []
        if name == "inline":
            launcher = InlineLauncher(ledger, resources, make_task)
        else:
            launcher = RayLauncher(
                ledger,
                resources,
                make_task,
                shapes(examples),
                name == "warm",
                stopping,
                options.verbose,
                trials=len(due) + plan.more,
                evaluations=earlier,
            )
        try:
            launcher.launch(queue)
        except LaunchInterrupted as error:
            ran.interrupted = True
            ran.lost = str(error) if isinstance(error, RayLostError) else None
            keeping.patience = _HURRIED
        except BaseException:
            keeping.patience = _HURRIED
            raise
        finally:
            queue.interrupt()
        ran.halted = queue.halted
        ran.elsewhere = list(queue.elsewhere.values())
        ran.left_out = list(queue.left_out.values())
        ran.left_out += [
            (named, ledger.left_out[named.trial.id]) for named in trials if named.trial.id in ledger.left_out
        ]
        ran.failed_elsewhere = list(ledger.failed_elsewhere.values())
    _describe(narrator, plan, ran)
    return ran


def _earlier(plan: Plan, stopping: EarlyStopping) -> list[Evaluation]:
    """What trials of earlier launches had reached, and when: by that, too, early stopping judges those that run now. Of
    a trial that is run again from the start, nothing."""
    runs = {
        one.named.trial.id: plan.states[one.named.trial.id].run_id
        for one in plan.trials
        if one.named.trial.id in plan.states and one.what != "rerun"
    }
    return stored_evaluations(client_of(plan.uri), runs, stopping.metric)


def _finish_models(plan: Plan, archivist: Archivist) -> None:
    """Models of trials that an earlier launch finished and ended before it made them."""
    for one in plan.trials:
        state = plan.states.get(one.named.trial.id)
        folder = state.tags.get("lqray.folder") if state else None
        if state and folder and state.status == "FINISHED" and state.tags.get(MODEL_TAG) == "pending":
            archivist.model(state.run_id, folder, one.named.trial.config())


def _describe(narrator: Narrator | None, plan: Plan, ran: Ran) -> None:
    """The description as the store says it now: other launches may have ended trials. That it cannot be written takes
    nothing from the results."""
    if narrator is None:
        return
    known = {named.trial.id: named for named in [one.named for one in plan.trials] + [r.named for r in ran.results]}
    try:
        narrator.look_again(read_states(plan.uri, ran.launch.experiment, TAGS, [ACCURACY]), list(known.values()))
        narrator.tell(now=True)
    except Exception as error:
        _log.warning("the description of %s is not current: %s", ran.launch.experiment, error)


def quick(experiment: Experiment, plan: Plan) -> bool:
    """Whether none of the trials is expected to take a minute, by earlier runs or else by arithmetic; GPUs are not
    guessed at."""
    history = History(plan.uri, experiment.name)
    if experiment.resources.gpus_per_process and history.empty:
        return False
    longest = 0.0
    seen: set[tuple[int, ...]] = set()
    for named in _examples(experiment, plan):
        trial = named.trial
        shape = (trial.workers, id(trial.data), id(trial.model), id(trial.schedule), id(trial.quantizer))
        if shape not in seen:
            seen.add(shape)
            _, seconds, _ = expected(trial, experiment.resources, history)
            longest = max(longest, WARM_SECONDS if seconds is None else seconds)
    return longest < WARM_SECONDS


def _examples(experiment: Experiment, plan: Plan) -> list[NamedTrial]:
    """The trials that are due, and, where a search will suggest others, two as they may be."""
    if not plan.more or experiment.search is None:
        return plan.due
    return [*plan.due, *(experiment.suggested(corner(experiment.search, high)) for high in (False, True))]


def shapes(trials: Sequence[NamedTrial]) -> list[Trial]:
    """One trial for each number of workers."""
    found: dict[int, Trial] = {}
    for named in trials:
        found.setdefault(named.trial.workers, named.trial)
    return list(found.values())


def _still_wanted(newer: PublishedPlan, launch: Launch) -> tuple[Callable[[NamedTrial], bool], str] | None:
    """Which trials a newer version of the launch's experiment file has, and why the others are not begun. Another file
    that happens to have the same `name:` says nothing of this one's trials: None."""
    if newer.file != file_of(launch):
        if newer.text != launch.source:
            _log.warning(
                "another launch runs another file of the name %s (%s): this one goes on with all trials of %s",
                launch.experiment,
                newer.file or "it does not say which",
                launch.file,
            )
        return None
    experiment = experiment_from_text(newer.text, launch.file)
    if experiment.most_trials > MOST_TRIALS:
        _log.warning(
            "%s, as launched again, has more than %d trials, too many to look for this launch's among them: this one "
            "goes on with all of its own",
            launch.file,
            MOST_TRIALS,
        )
        return None
    ids = {named.trial.id for named in experiment.trials()}
    return (lambda named: named.trial.id in ids), f"{launch.file} was launched again without it"
