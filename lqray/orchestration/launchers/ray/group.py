"""A Ray Train worker group that runs trial after trial, fed through a mailbox."""

from __future__ import annotations

import math
import threading
import time

from lqray.experiment.schema import Resources
from lqray.orchestration.failures import Failure, lost
from lqray.orchestration.launchers.placement import backend_of, per_process
from lqray.orchestration.launchers.ray import channel
from lqray.orchestration.launchers.ray.channel import Event
from lqray.orchestration.launchers.ray.deaths import failure_of_rank
from lqray.orchestration.launchers.ray.places import free_places_of_the_dead
from lqray.orchestration.launchers.ray.serving import serve
from lqray.orchestration.worker.task import Update, WorkerTask

_END_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
_PLACE_SECONDS = 5.0
"""Between two looks for places to be freed, while a group waits for its own."""


class Group:
    """`processes` Train workers. Made at once; the first task may wait some seconds for them."""

    def __init__(self, processes: int, resources: Resources, name: str, storage: str) -> None:
        from ray.train import RunConfig, ScalingConfig

        from lqray.orchestration.launchers.ray.loopback_groups import LoopbackTorchConfig
        from lqray.orchestration.launchers.ray.trainer import Trainer

        self.processes = processes
        self._look = 0.0
        self._mailbox = channel.make_mailbox()
        self.error: BaseException | None = None
        trainer = Trainer(
            serve,
            train_loop_config={"mailbox": self._mailbox},
            torch_config=LoopbackTorchConfig(
                backend=backend_of(resources), timeout_s=math.ceil(resources.timeout_seconds)
            ),
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=resources.gpus_per_process > 0,
                resources_per_worker=per_process(resources),
            ),
            run_config=RunConfig(name=name, storage_path=storage),
        )

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=fit, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can take a task."""
        return self._thread.is_alive()

    def give(self, task: WorkerTask) -> int | None:
        """A task for its workers. Returns the task's number; None where it is not taken, since a machine of theirs is
        being drained. Raises RayError when its mailbox is dead."""
        import ray

        number: int | None = ray.get(channel.give(self._mailbox, task))
        return number

    def hear(self) -> Event | None:
        """Its next event; None when it ended and nothing is left to hear. Raises RayError when its mailbox is dead."""
        while True:
            ended = not self.alive
            event = channel.hear(self._mailbox, 0.0 if ended else 0.5)
            if event is not None or ended:
                self._look = math.inf  # its workers are there
                return event
            if time.monotonic() > self._look:
                free_places_of_the_dead()
                self._look = time.monotonic() + _PLACE_SECONDS

    def halt(self, task: WorkerTask) -> None:
        """Let its workers leave this task after a checkpoint."""
        self._mailbox.halt.remote((task.trial_id, task.start))

    def rest(self, task: WorkerTask) -> tuple[list[tuple[int, Update]], str]:
        """Updates of a task that ended, which the launcher may not have; and which of its workers' machines is being
        drained, "" where none is. Nothing of a dead mailbox."""
        import ray

        try:
            return channel.rest(self._mailbox, (task.trial_id, task.start), _ANSWER_SECONDS)
        except ray.exceptions.RayError:
            return [], ""

    def failures(self) -> dict[int, Failure]:
        """Of a group that ended by itself, what Ray says of its ranks; {0: ...} when it says nothing of them."""
        if self.error is None:
            return {0: lost("the worker group ended without a word")}
        of_ranks: dict[int, BaseException] = getattr(self.error, "worker_failures", None) or {}
        return {rank: failure_of_rank(one, rank) for rank, one in of_ranks.items()} or {
            0: failure_of_rank(self.error, None)
        }

    def end(self) -> None:
        """Let its workers leave, and wait for that. Raises TimeoutError when they do not."""
        import ray

        if self.alive:
            channel.give(self._mailbox, None)
            self._thread.join(_END_SECONDS)
        ray.kill(self._mailbox)
        if self.alive:
            raise TimeoutError(f"a worker group did not end within {_END_SECONDS:g} s")
