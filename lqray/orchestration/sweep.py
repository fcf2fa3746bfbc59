"""The Ray launchers: Ray Tune schedules the trials, each of which runs on a Ray Train worker group.

isolated: a group for each trial. warm: a group runs one trial after the other; only the first waits for processes to
start. Both give the same bits.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Collection
from typing import Any

from lqray.experiment.options import EarlyStopping
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.cluster import ray_cluster
from lqray.orchestration.launcher import LaunchInterrupted, Work
from lqray.orchestration.ledger import Ledger
from lqray.orchestration.outcomes import result_of
from lqray.orchestration.placement import concurrent_trials, needed, processes_of
from lqray.orchestration.queue import TrialQueue
from lqray.orchestration.signals import raising
from lqray.orchestration.worker import News, Outcome, WorkerTask
from lqray.training.worker import interface_variables

_POLL_SECONDS = 0.5


class RayLauncher:
    """See `lqray.orchestration.launcher.Launcher`.

    make_task: what workers need to know of a trial. shapes: trials that need as much as any of those to come. verbose:
    show Ray's own log lines.
    """

    def __init__(
        self,
        ledger: Ledger,
        resources: Resources,
        make_task: Callable[[Work], WorkerTask],
        shapes: Collection[Trial],
        warm: bool,
        early_stopping: EarlyStopping | None = None,
        verbose: bool = False,
    ) -> None:
        self._ledger, self._resources, self._make_task = ledger, resources, make_task
        self._shapes, self._warm, self._early_stopping, self._verbose = shapes, warm, early_stopping, verbose

    def launch(self, queue: TrialQueue) -> None:
        """See `lqray.orchestration.launcher.Launcher.launch`."""
        if queue.over:
            return
        need = needed(self._shapes, self._resources)
        # A login inside torchrun inherits this one, and ranks would look for a store that nobody holds.
        environment = {"TORCHELASTIC_USE_AGENT_STORE": "False"}
        environment |= interface_variables(self._resources.network_interface)
        storage = tempfile.mkdtemp(prefix="lqray-")
        try:
            with raising(), ray_cluster(need, self._verbose, environment) as available, raising():
                self._tune(queue, concurrent_trials(need, available, self._resources), storage)
        except KeyboardInterrupt:
            raise LaunchInterrupted from None
        finally:
            shutil.rmtree(storage, ignore_errors=True)
        if not queue.over:  # Tune takes Ctrl-C for itself
            raise LaunchInterrupted

    def _tune(self, queue: TrialQueue, concurrent: int, storage: str) -> None:
        from ray import tune

        from lqray.orchestration.board import make_board
        from lqray.orchestration.driver import TrialDriver
        from lqray.orchestration.supply import Results, Supply

        board = make_board()
        news = _NewsDesk(board, self._ledger, queue)

        def config(work: Work) -> dict[str, Any]:
            return {"task": self._make_task(work), "processes": processes_of(work.named.trial, self._resources)}

        def outcomes(work: Work) -> dict[int, Outcome] | None:
            news.fetch()
            return news.ended.pop((work.named.trial.id, work.start), None)

        supply = Supply(queue, config)
        driver = tune.with_parameters(TrialDriver, warm=self._warm, groups_folder=storage, board=board)
        # A place on the head node and no CPU: a driver only waits, and CPUs are what its workers wait for.
        place = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
        tuner = tune.Tuner(
            tune.with_resources(driver, place),
            tune_config=tune.TuneConfig(
                search_alg=supply,
                scheduler=self._scheduler(),
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=storage,
                verbose=0,
                callbacks=[Results(queue, supply, outcomes, result_of)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        )
        with news:
            tuner.fit()

    def _scheduler(self) -> Any:
        """ASHA, where early stopping is wanted. Its rungs have no end: how long a trial is, is the trial's affair."""
        stopping = self._early_stopping
        if stopping is None:
            return None
        from ray.tune.schedulers import AsyncHyperBandScheduler

        return AsyncHyperBandScheduler(
            time_attr="iteration",
            metric=stopping.metric,
            mode=stopping.mode,
            max_t=10**9,
            grace_period=stopping.grace_period,
            reduction_factor=stopping.reduction_factor,
            brackets=stopping.brackets,
        )


class _NewsDesk:
    """Fetches what stands on the board and passes it on, from a thread of its own while the context lasts, and whenever
    the end of a trial is to be recorded: everything said before it comes first. ended: by (trial, start)."""

    def __init__(self, board: Any, ledger: Ledger, queue: TrialQueue) -> None:
        self._board, self._ledger, self._queue = board, ledger, queue
        self.ended: dict[tuple[str, int], dict[int, Outcome]] = {}
        self._fetching = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._asked: Any = None

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30.0)

    def fetch(self) -> None:
        """Pass on what stands there now. A slow answer, on a busy machine, is waited for: the board has forgotten what
        it holds."""
        import ray

        with self._fetching:
            running = self._queue.running_ids
            answers = {one: self._ledger.answer(one, self._queue.stop_reason(one) is not None) for one in running}
            for item in ray.get(self._board.exchange.remote(answers)):
                if isinstance(item, News):
                    self._ledger.heard(item)
                    if item.report:
                        self._queue.observer.progressed(item.trial_id, item.report)
                else:
                    trial_id, start, outcomes = item
                    self.ended[trial_id, start] = outcomes

    def _run(self) -> None:
        import ray

        while not self._stop.wait(_POLL_SECONDS):
            try:
                self.fetch()
            except ray.exceptions.RayError:
                return
