"""One `lqray run` of one experiment: plan (`lqray.orchestration.plan`), claim, launch, summarize."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lqray.experiment.grid import NamedTrial, experiment_from_text
from lqray.experiment.part_files import own_digests
from lqray.experiment.parts import places
from lqray.experiment.plan import MOST_TRIALS, PublishedPlan
from lqray.experiment.standing import Standing
from lqray.experiment.store import storage_address
from lqray.orchestration.code_version import training_code
from lqray.orchestration.launchers.contract import (
    Held,
    Launcher,
    LaunchInterrupted,
    Observer,
    Source,
    TrialResult,
    Work,
)
from lqray.orchestration.launchers.inline import InlineLauncher
from lqray.orchestration.launchers.placement import PlacementError, backend_of
from lqray.orchestration.launchers.ray.cluster import RayLostError, cluster_address, limit_said
from lqray.orchestration.launchers.ray.launcher import RayLauncher
from lqray.orchestration.plan.data import check_data, needed_data
from lqray.orchestration.plan.feasible import check_places, check_trials
from lqray.orchestration.plan.plan import TAGS, Budget, LauncherName, Plan, RunOptions, quick
from lqray.orchestration.provenance import provenance
from lqray.orchestration.queue.control import ControlRequests, ControlWatch, file_of, publish_plan
from lqray.orchestration.queue.limits import Limits
from lqray.orchestration.queue.optuna import OptunaSource
from lqray.orchestration.queue.queue import TrialQueue
from lqray.orchestration.queue.sources import Given
from lqray.orchestration.recording.claims import HEARTBEAT_SECONDS, HOLDER_PATIENCE
from lqray.orchestration.recording.derived import DerivedArtifacts, Draw
from lqray.orchestration.recording.recorder import Recorder, RecordingOptions
from lqray.orchestration.recording.summary import SummaryWriter
from lqray.orchestration.signals import from_here
from lqray.orchestration.worker.fencing import own_name
from lqray.orchestration.worker.task import WorkerTask
from lqray.store.client import client_of
from lqray.store.evaluations import Evaluation, stored_evaluations
from lqray.store.launches import Launch, open_launch
from lqray.store.outage import PATIENCE
from lqray.store.runs import latest_runs
from lqray.store.tags import FOLDER, MODEL_STATE
from lqray.training.storage import check_folder, open_folder

_HURRIED = 10.0  # seconds that figures and models have after Ctrl-C
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Presentation:
    """How what is recorded is put into words and drawn: `lqray.reporting`, which orchestration does not know. summary:
    the description of an experiment. density: of a run's `density.json`, without which there is no such figure.
    machine: what `lqray doctor` says of this machine, in lines, for a store's address."""

    summary: Callable[[Standing], str] | None = None
    density: Draw | None = None
    machine: Callable[[str], str] | None = None


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
    time_reasons: tuple[str, ...] = ()
    """What is said of trials that time ended, or kept from beginning, where there are any."""
    lost: str | None = None
    """What it was interrupted by, when that was the end of the Ray that it ran on."""

    @property
    def out_of_time(self) -> bool:
        """Whether `--max-hours` or resources.trial_time_limit ended trials, or kept some from beginning."""
        return bool(self.time_reasons)

    def take(self, result: TrialResult) -> None:
        """One more result, without its snapshot and levels: of ten thousand trials those would fill the memory."""
        self.results.append(replace(result, snapshot=None, levels=None))


def check_plan(plan: Plan, options: RunOptions, thorough: bool) -> None:
    """What can be known before the first trial, and is the same for a launch and for its dry run. thorough: see
    `check_trials`; the launchers `auto` and `inline`, and a dry run, need torch for other things, too. Raises
    PlacementError, StorageError, UnfitTrialError."""
    experiment, inline = plan.experiment, options.launcher == "inline"
    if inline and experiment.search and experiment.search.early_stopping:
        raise PlacementError(
            "search.early_stopping compares trials through Ray Tune; found --launcher inline; allowed: warm, isolated"
        )
    storage_address(experiment.storage.folder)
    check_places(plan.shapes, experiment.resources, inline, elsewhere=lambda: runs_elsewhere(options.launcher))
    check_trials(plan.examples, thorough)


def runs_elsewhere(launcher: LauncherName) -> bool:
    """Whether trials run on a cluster that is joined, whose nodes may have what this machine lacks. Raises ClusterError
    where RAY_ADDRESS=auto insists on a Ray that is not there."""
    return launcher != "inline" and (limit_said() or cluster_address() is not None)


def run_plan(plan: Plan, options: RunOptions, observer: Observer, presentation: Presentation = Presentation()) -> Ran:
    """Run what is due. Raises PlacementError, StorageError, UnfitTrialError, ClusterError, StoreAwayError."""
    from_here("note")  # from now on there is something to record
    check_plan(plan, options, thorough=options.launcher in ("auto", "inline"))
    if not plan.over:
        check_folder(open_folder(_storage(plan)))
        if not runs_elsewhere(options.launcher):  # else the launcher asks the nodes
            check_data(plan.examples)
    sweep = _Sweep.opened(plan, options, presentation)
    if plan.over:
        sweep.recording.derived.close(PATIENCE)
    else:
        with sweep.claimed(observer) as (recorder, queue):
            sweep.launch(sweep.launcher(recorder), queue)
            sweep.note(recorder, queue)
    sweep.summarize()
    return sweep.ran


def _storage(plan: Plan) -> str:
    return f"{storage_address(plan.experiment.storage.folder)}/{plan.experiment.name}"


@dataclass(frozen=True)
class _Sweep:
    """What is under way. ran: what came of it so far."""

    plan: Plan
    options: RunOptions
    ran: Ran
    recording: RecordingOptions

    @classmethod
    def opened(cls, plan: Plan, options: RunOptions, presentation: Presentation) -> _Sweep:
        """With its experiment in the store. Models that an earlier launch left are begun."""
        experiment, tracking = plan.experiment, plan.experiment.tracking
        document, storage = experiment.document, storage_address(experiment.storage.folder)
        launch = open_launch(
            plan.uri, experiment.name, document.file, document.text, provenance(document.file), experiment.axes, storage
        )
        summary = None
        if presentation.summary:
            trials = [one.named for one in plan.trials]
            summary = SummaryWriter(launch, experiment, trials, plan.runs, presentation.summary)
        derived = DerivedArtifacts(plan.uri, presentation.density if tracking.figures else None)
        for one in plan.trials:
            run = plan.runs.get(one.named.trial.id)
            if run and (run.status, run.tags.get(MODEL_STATE)) == ("FINISHED", "pending"):
                # The file says where storage is, perhaps elsewhere by now; the run, which folder there it has.
                name = own_name(run.tags.get(FOLDER, ""), run.trial_id)
                if name:
                    derived.model(run.run_id, f"{_storage(plan)}/{name}", one.named.trial.config())
        recording = RecordingOptions(derived, tracking.log_model, summary, presentation.machine)
        return cls(plan, options, Ran(launch), recording)

    @contextmanager
    def claimed(self, observer: Observer) -> Iterator[tuple[Recorder, TrialQueue]]:
        """The queue of the trials that are due, each of which is claimed as its turn comes; while the context lasts,
        the claims are kept, and others' requests heard."""
        plan, options, launch = self.plan, self.options, self.ran.launch
        experiment = plan.experiment
        source: Source = Given(plan.due)
        if plan.more:
            known = {one.named.trial.id for one in plan.trials}
            source = OptunaSource(experiment, plan.due, plan.observed, known, plan.more)
        with Recorder(launch, _storage(plan), plan.runs, options.rerun, self.recording) as recorder:
            requests = ControlRequests(launch)  # before the plan is published, which may take a while: none is missed
            if options.whole and not experiment.adaptive:
                publish_plan(launch)
            queue = TrialQueue(source, recorder, observer, self.ran.take, self._limits)
            recorder.keep_claims(queue)
            summary = self.recording.summary_writer
            tell = summary.tell if summary else lambda: None
            watch = ControlWatch(requests, queue, self._still_wanted, recorder.deleted, tell)
            with _within(options.budget, queue), watch:
                yield recorder, queue

    @property
    def _limits(self) -> Limits:
        held, most = HOLDER_PATIENCE + 2 * HEARTBEAT_SECONDS, self.plan.experiment.resources.trial_time_limit
        return Limits(self.options.max_failures, held=held, trial_seconds=most)

    def launcher(self, recorder: Recorder) -> Launcher:
        """The one that was asked for."""
        plan, options, resources = self.plan, self.options, self.plan.experiment.resources
        name = options.launcher
        if name == "inline":
            return InlineLauncher(recorder, resources, self._task())
        if name == "auto":
            name = "warm" if quick(plan) else "isolated"
        return RayLauncher(
            recorder,
            resources,
            self._task(),
            plan.shapes,
            name == "warm",
            plan.experiment.search.early_stopping if plan.experiment.search else None,
            options.verbose,
            trials=len(plan.due) + plan.more,
            evaluations=self._earlier(),
            data=[needed.options for needed in needed_data(plan.examples)],
        )

    def launch(self, launcher: Launcher, queue: TrialQueue) -> None:
        """Until nothing is left, or a signal, or an error; then every end is recorded."""
        try:
            launcher.launch(queue)
        except LaunchInterrupted as error:
            self.ran.interrupted = True
            self.ran.lost = str(error) if isinstance(error, RayLostError) else None
            self.recording.patience = _HURRIED
        except BaseException:
            self.recording.patience = _HURRIED
            raise
        finally:
            queue.interrupt()

    def note(self, recorder: Recorder, queue: TrialQueue) -> None:
        """What became of the trials that this launch did not run."""
        ran, trials = self.ran, [one.named for one in self.plan.trials]
        ran.halted = queue.halted
        ran.elsewhere = list(queue.elsewhere.values())
        deleted = [
            (named, recorder.left_out[named.trial.id]) for named in trials if named.trial.id in recorder.left_out
        ]
        ran.left_out = [*queue.left_out.values(), *deleted]
        ran.failed_elsewhere = list(recorder.failed_elsewhere.values())
        reasons = [self.options.budget.why if self.options.budget else None, self._limits.over_time]
        found = {result.stopped for result in ran.results} | {why for _, why in ran.left_out}
        ran.time_reasons = tuple(why for why in reasons if why and why in found)

    def summarize(self) -> None:
        """The experiment's description as the store says it now: other launches may have ended trials. That it cannot
        be written takes nothing from the results."""
        summary, launch = self.recording.summary_writer, self.ran.launch
        if summary is None:
            return
        done = [one.named for one in self.plan.trials] + [result.named for result in self.ran.results]
        known = {named.trial.id: named for named in done}
        try:
            metric = self.plan.experiment.headline.metric
            summary.look_again(latest_runs(self.plan.uri, launch.experiment, TAGS, [metric]), list(known.values()))
            summary.tell(now=True)
        except Exception as error:
            _log.warning("the description of %s is not current: %s", launch.experiment, error)

    def _task(self) -> Callable[[Work], WorkerTask]:
        """What workers need to know of a trial."""
        experiment, search = self.plan.experiment, self.plan.experiment.search
        code, backend = training_code(), backend_of(experiment.resources)
        stopping = search.early_stopping if search else None
        needed = stopping.metric if stopping else search.metric if search and self.plan.more else None

        def make(work: Work) -> WorkerTask:
            trial = work.named.trial
            return WorkerTask(
                trial_id=trial.id,
                name=work.named.name,
                config=trial.config(),
                resources=experiment.resources,
                storage=experiment.storage,
                folder=work.folder,
                run_id=work.run_id,
                start=work.start,
                backend=backend,
                code=code,
                stop_rules=self.options.stop_rules,
                needed_metric=needed,
                system_metrics=experiment.tracking.system_metrics,
                recorded=work.recorded,
                claim=work.claim,
                continued=work.continued,
                places=places(),
                own_parts=own_digests(trial),
            )

        return make

    def _earlier(self) -> list[Evaluation]:
        """What trials of earlier launches had reached, and when: by that, too, early stopping judges those that run
        now. Of a trial that is run again from the start, nothing."""
        plan, search = self.plan, self.plan.experiment.search
        if search is None or search.early_stopping is None:
            return []
        ids = [one.named.trial.id for one in plan.trials if one.what != "rerun"]
        runs = {trial_id: plan.runs[trial_id].run_id for trial_id in ids if trial_id in plan.runs}
        return stored_evaluations(client_of(plan.uri), runs, search.early_stopping.metric)

    def _still_wanted(self, newer: PublishedPlan) -> tuple[Callable[[NamedTrial], bool], str] | None:
        """See `_wanted`; a search draws from its space, whatever a newer file says."""
        return None if self.plan.more else _wanted(newer, self.ran.launch)


@contextmanager
def _within(budget: Budget | None, queue: TrialQueue) -> Iterator[None]:
    """While the context lasts: once a launch's time is over, what runs stops after a checkpoint, and nothing begins."""
    if budget is None:
        yield
        return
    why = budget.why

    def end() -> None:
        queue.stop(lambda named: True, why)

    if not budget.left:
        end()
    timer = threading.Timer(budget.left, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wanted(newer: PublishedPlan, launch: Launch) -> tuple[Callable[[NamedTrial], bool], str] | None:
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
