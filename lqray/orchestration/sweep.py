"""The Ray launcher: Ray Tune schedules the trials, each of which drives a Ray Train run."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Resources
from lqray.orchestration.cluster import ray_cluster
from lqray.orchestration.launcher import LaunchInterrupted, Observer, TrialResult, sigterm_as_interrupt
from lqray.orchestration.placement import concurrent_trials, needed, processes_of
from lqray.orchestration.tracking import Launch, end_killed_runs
from lqray.training.loop import Report

_POLL_SECONDS = 0.5


class RayLauncher:
    """See `lqray.orchestration.launcher.Launcher`. verbose: show Ray's own log lines."""

    def __init__(self, launch: Launch, resources: Resources, observer: Observer, verbose: bool = False) -> None:
        self._launch = launch
        self._resources = resources
        self._observer = observer
        self._verbose = verbose

    def launch(self, trials: Iterable[NamedTrial], on_result: Callable[[TrialResult], None]) -> None:
        """See `lqray.orchestration.launcher.Launcher.launch`."""
        chosen = list(trials)
        if not chosen:
            return
        for named in chosen:
            processes_of(named.trial, self._resources)
        need = needed((named.trial for named in chosen), self._resources)
        storage = tempfile.mkdtemp(prefix="lqray-")
        missing = {named.trial.id: named for named in chosen}

        def on_end(result: TrialResult) -> None:
            del missing[result.named.trial.id]
            self._observer.ended(result)
            on_result(result)

        try:
            with sigterm_as_interrupt(), ray_cluster(need, self._verbose) as available:
                concurrent = concurrent_trials(need, available, self._resources)
                self._tune(chosen, concurrent, storage, on_end)
        except KeyboardInterrupt:
            pass
        finally:
            shutil.rmtree(storage, ignore_errors=True)
        if missing:
            for trial_id, run_id in end_killed_runs(self._launch, missing).items():
                on_end(TrialResult(missing[trial_id], "KILLED", run_id=run_id))
            raise LaunchInterrupted

    def _tune(
        self, chosen: list[NamedTrial], concurrent: int, storage: str, on_end: Callable[[TrialResult], None]
    ) -> None:
        from ray import tune

        from lqray.orchestration.trial import drive
        from lqray.orchestration.tune_results import TuneResults

        by_id = {named.trial.id: named for named in chosen}
        board = _make_board()
        trainable = tune.with_parameters(
            drive, launch=self._launch, resources=self._resources, board=board, storage=storage
        )
        # A place on the head node and no CPU: a driver only waits, and CPUs are what its workers wait for.
        driver = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
        configs = [{"name": named.name, "config": named.trial.config()} for named in chosen]
        tuner = tune.Tuner(
            tune.with_resources(trainable, driver),
            param_space={"trial": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"tune-{self._launch.launch_id}",
                storage_path=storage,
                verbose=0,
                callbacks=[TuneResults(self._launch, by_id, on_end)],
            ),
        )
        with _Watch(board, by_id, self._observer):
            tuner.fit()


def _make_board() -> Any:
    """An actor that trials post their news to, and the launcher reads."""
    import ray

    @ray.remote(num_cpus=0)
    class Board:
        def __init__(self) -> None:
            self._news: list[tuple[str, Report | None]] = []

        def started(self, trial_id: str) -> None:
            self._news.append((trial_id, None))

        def progressed(self, trial_id: str, report: Report) -> None:
            self._news.append((trial_id, report))

        def take(self) -> list[tuple[str, Report | None]]:
            news, self._news = self._news, []
            return news

    return Board.remote()  # type: ignore[attr-defined]


class _Watch:
    """Passes the board's news to the observer, from a thread of its own, while the context lasts."""

    def __init__(self, board: Any, by_id: dict[str, NamedTrial], observer: Observer) -> None:
        self._board = board
        self._by_id = by_id
        self._observer = observer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30.0)

    def _run(self) -> None:
        """Until the context ends and nothing is left to pass on. A slow answer, on a busy machine, is waited for: the
        board has forgotten what it holds."""
        import ray

        asked = None
        while True:
            ending = self._stop.wait(_POLL_SECONDS)
            asked = self._board.take.remote() if asked is None else asked
            try:
                news = ray.get(asked, timeout=10.0)
            except ray.exceptions.GetTimeoutError:
                if ending:
                    return
                continue
            except ray.exceptions.RayError:
                return
            asked = None
            for trial_id, report in news:
                if report is None:
                    self._observer.started(self._by_id[trial_id])
                else:
                    self._observer.progressed(trial_id, report)
            if ending and not news:
                return
