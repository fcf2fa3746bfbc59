"""The inline launcher: trials one after the other on this machine, without Ray.

A trial of one process trains in this one; one of several has processes of its own: see `copies`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, cast

from lqray.experiment.schema import Resources
from lqray.orchestration.failures import ProcessEndedError, ProcessLostError, failure_of
from lqray.orchestration.launchers.contract import LaunchInterrupted, Queue, Recording, TrialResult, Work
from lqray.orchestration.launchers.copies import copying, take_over, wait_for_the_original
from lqray.orchestration.launchers.outcomes import result_of
from lqray.orchestration.launchers.placement import device_of, processes_of
from lqray.orchestration.launchers.presence import Presence
from lqray.orchestration.output import outlive_readers
from lqray.orchestration.signals import (
    heeded,
    leave_to_launcher,
    noting,
    raise_if_heard,
    raising,
    starting_processes,
)
from lqray.orchestration.worker.run import run_task
from lqray.orchestration.worker.task import Ack, Outcome, Update, WorkerTask
from lqray.training.reports import Place

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


class InlineLauncher:
    """See `lqray.orchestration.launchers.contract.Launcher`. make_task: what workers need to know of a trial."""

    def __init__(self, recorder: Recording, resources: Resources, make_task: Callable[[Work], WorkerTask]) -> None:
        self._recorder, self._resources, self._make_task = recorder, resources, make_task

    def launch(self, queue: Queue) -> None:
        """See `lqray.orchestration.launchers.contract.Launcher.launch`."""
        try:
            # Only training is interrupted: what this thread raises where it takes a lock that others wait for, as
            # Condition does in Python, it would keep for ever.
            with heeded(), noting(), Presence() as presence, copying(presence.folder) as context:
                while not queue.over:
                    raise_if_heard()
                    work = queue.take()
                    if work is None:
                        time.sleep(_POLL_SECONDS)
                        continue
                    presence.use(processes_of(work.named.trial, self._resources) * self._resources.cpus_per_process)
                    result = self._run(work, queue, context)
                    if result.failure:
                        raise_if_heard()  # torch may have made an error of its own of it
                    queue.ended(result)
                raise_if_heard()
        except KeyboardInterrupt:
            raise LaunchInterrupted from None

    def _run(self, work: Work, queue: Queue, context: BaseContext) -> TrialResult:
        task = self._make_task(work)
        trial_id = work.named.trial.id

        def heard(update: Update) -> Ack:
            with noting():
                self._recorder.record(update)
                if update.report:
                    queue.observer.progressed(trial_id, update.report)
                return self._recorder.acknowledge(trial_id, queue.stop_reason(trial_id) is not None)

        processes = processes_of(work.named.trial, self._resources)
        if processes == 1:
            from lqray.training.worker import release_ended_groups

            with raising():
                outcomes = {0: run_task(task, 0, device_of(0, self._resources), _Direct(heard), logged=False)}
            release_ended_groups()
        else:
            wait_for_the_original(context)
            outcomes = _run_processes(context, task, processes, self._resources, heard)
        return result_of(work, outcomes, queue.stop_reason(trial_id))


class _Direct:
    """Link of a worker in this process."""

    def __init__(self, hear: Callable[[Update], Ack]) -> None:
        self._hear = hear
        self._heard = Ack()

    def send(self, update: Update) -> None:
        self._heard = self._hear(update)

    def acknowledged(self) -> Ack:
        return self._heard

    def close(self) -> None:
        pass


class _Piped:
    """Link of a worker in a process of its own. answers: two shared integers, points delivered and whether to stop."""

    def __init__(self, pipe: Connection, answers: Any) -> None:
        self._pipe, self._answers = pipe, answers

    def send(self, update: Update) -> None:
        try:
            self._pipe.send(update)
        except OSError:  # the launcher is gone, as `_end_with_launcher` is about to notice
            os._exit(1)

    def acknowledged(self) -> Ack:
        return Ack(self._answers[0], bool(self._answers[1]))

    def close(self) -> None:
        pass  # the outcome follows in the same pipe


class _Listener:
    """Hears the processes of one trial, each through a pipe of its own.

    A process may be killed at any moment, also in the middle of a message. No lock is shared with it, hence: one that
    died with it would hold up the launcher for ever. (SimpleQueue and Array have such locks.)
    """

    def __init__(self, pipes: list[Connection], answers: Any, heard: Callable[[Update], Ack]) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._ranks = {pipe: rank for rank, pipe in enumerate(pipes)}
        self._answers, self._heard = answers, heard
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear what the processes, now ended, have left in their pipes."""
        self._ending.set()
        self._thread.join()

    def _listen(self) -> None:
        while self._ranks:
            last = self._ending.is_set()
            ready = wait(list(self._ranks), timeout=0 if last else 0.1)
            for pipe in ready:
                self._receive(cast("Connection", pipe))
            if last and not ready:
                return

    def _receive(self, pipe: Connection) -> None:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            del self._ranks[pipe]
            return
        if isinstance(message, Update):
            answer = self._heard(message)
            self._answers[0], self._answers[1] = answer.delivered, answer.stop
        else:
            self.outcomes[self._ranks[pipe]] = message


def _run_processes(
    context: BaseContext, task: WorkerTask, world: int, resources: Resources, heard: Callable[[Update], Ack]
) -> dict[int, Outcome]:
    """Train on `world` processes. Once one has failed, the others have a while to say so, too, and are then ended."""
    answers = context.RawArray("q", 2)
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    port = _free_port()
    processes = [
        context.Process(  # type: ignore[attr-defined]
            target=_process,
            args=(rank, task, world, port, device_of(rank, resources), sender, answers, dict(os.environ)),
            daemon=True,
        )
        for rank, (_, sender) in enumerate(pipes)
    ]
    listener = _Listener([receiver for receiver, _ in pipes], answers, heard)
    outcomes = listener.outcomes
    ended_here: set[BaseProcess] = set()
    try:
        with starting_processes():
            for rank, (process, (_, sender)) in enumerate(zip(processes, pipes, strict=True)):
                try:
                    process.start()
                except (OSError, EOFError) as error:  # no more processes, or the original of the copies was killed
                    outcomes[rank] = Outcome(failure=failure_of(_not_started(rank, error), rank))
                sender.close()
        deadline: float | None = None
        while any(process.is_alive() for process in processes) and len(outcomes) < world:
            time.sleep(0.05)
            raise_if_heard()
            # Stop requests reach the worker with the answer to its next message; it sends one twice a second.
            ended = [rank for rank, process in enumerate(processes) if not process.is_alive()]
            failed = any(outcome.failure for outcome in list(outcomes.values()))
            if deadline is None and (failed or any(processes[rank].exitcode for rank in ended)):
                deadline = time.monotonic() + _GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                break
    finally:
        for process in processes:
            if process.is_alive() and len(outcomes) == world:
                process.join(_GRACE_SECONDS)
            if process.is_alive():
                ended_here.add(process)
                process.kill()
            if process.pid is not None:
                process.join()
        listener.close()
    for rank, process in enumerate(processes):
        if rank not in outcomes:
            outcomes[rank] = Outcome(failure=failure_of(_gone(rank, process, process in ended_here), rank))
    return outcomes


def _not_started(rank: int, error: Exception) -> Exception:
    return ProcessLostError(f"the process of rank {rank} could not be started: {error or type(error).__name__}")


def _gone(rank: int, process: BaseProcess, ended_here: bool) -> Exception:
    if ended_here:
        return ProcessEndedError(
            f"lqray ended the process of rank {rank}, which had not ended by itself {_GRACE_SECONDS:g} s after another "
            "one failed"
        )
    code = process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
    return ProcessLostError(f"the process of rank {rank} {how}, without a word")


def _process(
    rank: int,
    task: WorkerTask,
    world: int,
    port: int,
    device: str,
    pipe: Connection,
    answers: Any,
    environment: Mapping[str, str],
) -> None:
    leave_to_launcher()
    take_over(environment)
    outlive_readers()
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    link = _Piped(pipe, answers) if rank == 0 else None
    outcome = run_task(task, rank, device, link, place=Place(rank, world, port))
    with suppress(OSError):  # the launcher is gone, and with it whoever would hear of it
        pipe.send(outcome)
    _leave()


def _end_with_launcher() -> None:
    """End this process when the launcher is gone, or the original that it is a copy of, through which alone the
    launcher knows whether it is alive: a trial that nobody hears of would go on beside its successor."""
    launcher, original = multiprocessing.parent_process(), os.getppid()
    while launcher is not None and launcher.is_alive() and os.getppid() == original:
        launcher.join(0.5)
    os._exit(1)


def _leave() -> NoReturn:
    """End this process, all its work done, without the interpreter's own end.

    A thread of this process that asks for the GIL while the interpreter ends may abort it: the one that watches the
    launcher is still there, and a process group's, where a trial failed and something holds the group.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
