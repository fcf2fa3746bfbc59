"""A Ray Train worker group that runs trial after trial, fed through a mailbox."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

from lqray.experiment.schema import Resources
from lqray.orchestration.cluster import on_this_node
from lqray.orchestration.failures import Failure, failure_of, lost
from lqray.orchestration.placement import backend_of
from lqray.orchestration.worker import Heard, News, Outcome, WorkerTask, run_task
from lqray.training.loop import Report

Event = tuple[int, int, Outcome | Report]
"""Number of the task, rank, and how it ended there or an evaluation on the way."""

_END_SECONDS = 30.0


class Mailbox:
    """Tasks on their way to a group, in order, and what its ranks say of them; an asyncio actor."""

    def __init__(self) -> None:
        self._tasks: list[WorkerTask | None] = []
        self._more = asyncio.Condition()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def put(self, task: WorkerTask | None) -> int:
        """A task for the group, or None: it shall end. Returns the task's number."""
        async with self._more:
            self._tasks.append(task)
            self._more.notify_all()
            return len(self._tasks) - 1

    async def task(self, number: int) -> WorkerTask | None:
        """Task of a number, as soon as there is one."""
        async with self._more:
            await self._more.wait_for(lambda: len(self._tasks) > number)
            return self._tasks[number]

    async def tell(self, event: Event) -> None:
        """From a rank."""
        await self._events.put(event)

    async def hear(self, seconds: float) -> Event | None:
        """The next event; None after so many seconds."""
        if not self._events.empty():
            return self._events.get_nowait()
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None


class Group:
    """`processes` Train workers. Made at once; the first task may wait some seconds for them."""

    def __init__(self, processes: int, resources: Resources, name: str, storage: str, board: Any) -> None:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        self.processes = processes
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Mailbox).remote()
        self.error: BaseException | None = None
        per_worker: dict[str, float] = {"CPU": resources.cpus_per_process}
        if resources.gpus_per_process:
            per_worker["GPU"] = resources.gpus_per_process
        if resources.memory_gib_per_process:
            per_worker["memory"] = resources.memory_gib_per_process * 2**30
        trainer = TorchTrainer(
            _serve,
            train_loop_config={"mailbox": self.mailbox, "board": board},
            torch_config=TorchConfig(backend=backend_of(resources), timeout_s=math.ceil(resources.timeout_seconds)),
            scaling_config=ScalingConfig(
                num_workers=processes, use_gpu=resources.gpus_per_process > 0, resources_per_worker=per_worker
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

    def failures(self) -> dict[int, Failure]:
        """Of a group that ended by itself, what Ray says of its ranks; {0: ...} when it says nothing of them."""
        if self.error is None:
            return {0: lost("the worker group ended without a word")}
        of_ranks: dict[int, BaseException] = getattr(self.error, "worker_failures", None) or {}
        return {rank: failure_of(one, rank) for rank, one in of_ranks.items()} or {0: failure_of(self.error)}

    def end(self) -> None:
        """Let its workers leave, and wait for that. Raises TimeoutError when they do not."""
        import ray

        if self.alive:
            self.mailbox.put.remote(None)
            self._thread.join(_END_SECONDS)
        ray.kill(self.mailbox)
        if self.alive:
            raise TimeoutError(f"a worker group did not end within {_END_SECONDS:g} s")


def _serve(config: dict[str, Any]) -> None:
    """Ray Train's loop of one worker. Raises RuntimeError, which ends the group, after a trial that may have left it
    out of step: one that failed otherwise than on all ranks alike."""
    import gc

    import ray
    import ray.train
    import ray.train.torch

    mailbox, board = config["mailbox"], config["board"]
    rank = ray.train.get_context().get_world_rank()
    device = str(ray.train.torch.get_device())
    number = 0
    while (task := ray.get(mailbox.task.remote(number))) is not None:
        link = _RayLink(board, mailbox, number) if rank == 0 else None
        outcome = run_task(task, rank, device, link)
        ray.get(mailbox.tell.remote((number, rank, outcome)))
        if outcome.failure and outcome.failure.kind != "non_finite":
            raise RuntimeError(f"rank {rank}: {outcome.failure.error}")
        gc.collect()
        number += 1


class _RayLink:
    """Link of rank 0; an evaluation goes to the driver as well."""

    def __init__(self, board: Any, mailbox: Any, number: int) -> None:
        self._board, self._mailbox, self._number = board, mailbox, number
        self._answers: list[Any] = []
        self._heard = Heard()

    def send(self, news: News) -> None:
        self._answers.append(self._board.post.remote(news))
        if news.report and news.report.evaluated and not news.report.final:
            self._mailbox.tell.remote((self._number, 0, news.report))

    def heard(self) -> Heard:
        import ray

        while self._answers:
            ready, _ = ray.wait(self._answers[:1], timeout=0)
            if not ready:
                break
            self._heard = ray.get(self._answers.pop(0))
        return self._heard

    def close(self) -> None:
        import ray

        if self._answers:
            ray.get(self._answers)


def wait_for_event(group: Group) -> Event | None:
    """The next event of a group; None when it ended and nothing is left to hear."""
    import ray

    while True:
        ended = not group.alive
        event: Event | None = ray.get(group.mailbox.hear.remote(0.0 if ended else 0.5))
        if event is not None or ended:
            return event
