"""The Ray launchers: Ray Tune schedules the trials, each of which runs on a Ray Train worker group.

isolated: a group for each trial. warm: a group runs one trial after the other; only the first waits for processes to
start. Both give the same bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

from lqray.experiment.options.data import DataOptions
from lqray.experiment.options.search import EarlyStopping
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.launchers.contract import LaunchInterrupted, Queue, Recording, Work
from lqray.orchestration.launchers.outcomes import result_of
from lqray.orchestration.launchers.placement import concurrent_trials, needed, processes_of
from lqray.orchestration.launchers.presence import Presence
from lqray.orchestration.launchers.ray.cluster import Cluster, ray_cluster
from lqray.orchestration.launchers.ray.machines import MachineWatch
from lqray.orchestration.launchers.ray.nodes_data import check_data_on_nodes
from lqray.orchestration.launchers.ray.room import Room
from lqray.orchestration.launchers.ray.watch import Guarded, RayWatch
from lqray.orchestration.signals import raising
from lqray.orchestration.worker.task import Ack, Update, WorkerTask
from lqray.store.evaluations import Evaluation
from lqray.training.reports import interface_variables


class RayLauncher:
    """See `lqray.orchestration.launchers.contract.Launcher`.

    make_task: what workers need to know of a trial. shapes: trials that need as much as any of those to come. verbose:
    show Ray's own log lines. trials: at most so many are to come, where that is known: a Ray of the launch's own takes
    no more cores than they use. evaluations: of earlier launches, for early stopping. data: of all trials, looked for
    on the nodes of a Ray that was joined.
    """

    def __init__(
        self,
        recorder: Recording,
        resources: Resources,
        make_task: Callable[[Work], WorkerTask],
        shapes: Collection[Trial],
        warm: bool,
        early_stopping: EarlyStopping | None = None,
        verbose: bool = False,
        trials: int | None = None,
        evaluations: Collection[Evaluation] = (),
        data: Sequence[DataOptions] = (),
    ) -> None:
        self._trials, self._evaluations, self._data = trials, evaluations, data
        self._recorder, self._resources, self._make_task = recorder, resources, make_task
        self._shapes, self._warm, self._early_stopping, self._verbose = shapes, warm, early_stopping, verbose

    def launch(self, queue: Queue) -> None:
        """See `lqray.orchestration.launchers.contract.Launcher.launch`. Raises UnfitTrialError for data that no node of
        a Ray that was joined has."""
        if queue.over:
            return
        need = needed(self._shapes, self._resources)
        # A login inside torchrun inherits this one, and ranks would look for a store that nobody holds.
        environment = {"TORCHELASTIC_USE_AGENT_STORE": "False"}
        environment |= interface_variables(self._resources.network_interface)
        try:
            with (
                raising(),
                Presence() as presence,
                ray_cluster(need, self._verbose, environment, presence, self._most_cores(need)) as cluster,
                # Of a cluster other nodes use a folder of this name, too, beside their own launches' folders.
                tempfile.TemporaryDirectory(prefix="lqray-", dir=cluster.folder, ignore_cleanup_errors=True) as storage,
                raising(),  # Ray and what it imports have set handlers of their own
            ):
                concurrent_trials(need, cluster.resources, self._resources)
                room = Room(round(need["CPU"]) // self._resources.cpus_per_process, self._resources, cluster.limit)
                machines = MachineWatch(room, queue)
                room.check(machines.look())
                if cluster.folder is None:
                    check_data_on_nodes(self._data, need)
                self._tune(queue, room, machines, storage, cluster)
        except KeyboardInterrupt:
            raise LaunchInterrupted from None
        if not queue.over:
            raise LaunchInterrupted

    def _most_cores(self, need: dict[str, float]) -> int | None:
        """What all trials that may run at a time can use."""
        counts = [count for count in (self._trials, self._resources.concurrent_trials) if isinstance(count, int)]
        return int(need["CPU"]) * max(1, min(counts)) if counts else None

    def _tune(self, queue: Queue, room: Room, machines: MachineWatch, storage: str, cluster: Cluster) -> None:
        from ray import tune

        from lqray.orchestration.launchers.ray.access import withhold_credentials
        from lqray.orchestration.launchers.ray.channel import Ended, Ends, UpdateReceiver
        from lqray.orchestration.launchers.ray.driver import TrialDriver
        from lqray.orchestration.launchers.ray.supply import Results, Stopper, Supply

        withhold_credentials()
        receiver = UpdateReceiver(self._hear(queue), lambda: self._answers(queue), machines.drained)
        watch = RayWatch(cluster)
        guarded: Any = Guarded(queue, watch)
        stopper = Stopper()

        def config(work: Work) -> dict[str, Any]:
            # The last two not by tune.with_parameters: it puts them into Ray's store of objects, and a launch that owns
            # some is ended without a word when its machine's raylet ends (Ray 2.60), before it has recorded anything.
            processes = processes_of(work.named.trial, self._resources)
            task = self._make_task(work)
            return {"task": task, "processes": processes, "warm": self._warm, "groups_folder": storage}

        def end_of(work: Work) -> Ended | None:
            start = (work.named.trial.id, work.start)
            if start not in receiver.ended:  # stopped, or its driver died: what it said so far comes first
                receiver.fetch_now()
            return receiver.ended.pop(start, None)

        supply = Supply(guarded, config, lambda: room.trials, lambda: stopper.asked)

        def start_of(tune_trial: str) -> tuple[str, int]:
            work = supply.works[tune_trial]
            return work.named.trial.id, work.start

        # A place on the head node and no CPU: a driver only waits, and CPUs are what its workers wait for.
        driver: Any = tune.with_resources(TrialDriver, tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}]))
        driver.__qualname__ = TrialDriver.__qualname__  # Ray's name for its process, and in what it says of its death
        tuner = tune.Tuner(
            driver,
            tune_config=tune.TuneConfig(
                search_alg=supply,
                scheduler=self._scheduler(),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                stop=stopper,
                storage_path=storage,
                verbose=0,
                callbacks=[Ends(receiver, start_of), Results(guarded, supply, end_of, result_of)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        )

        def fit() -> None:
            # To a Ray of our own no machine comes, and none goes.
            with receiver, nullcontext() if cluster.folder else machines:
                tuner.fit()

        watch.wait_for(fit, stopper.set)

    def _hear(self, queue: Queue) -> Callable[[Update], None]:
        def hear(update: Update) -> None:
            self._recorder.record(update)
            if update.report:
                queue.observer.progressed(update.trial_id, update.report)

        return hear

    def _answers(self, queue: Queue) -> dict[str, Ack]:
        running = queue.running_ids
        return {one: self._recorder.acknowledge(one, queue.stop_reason(one) is not None) for one in running}

    def _scheduler(self) -> Any:
        """ASHA, where early stopping is wanted."""
        stopping = self._early_stopping
        if stopping is None:
            return None
        from lqray.orchestration.launchers.ray.early_stopping import RememberingHalving

        return RememberingHalving(stopping, self._evaluations)
