"""What a worker process does under every launcher: run its task's trial; rank 0 tells the launcher what it measures."""

from __future__ import annotations

import ctypes
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from lqray.experiment.part_files import own_digests
from lqray.experiment.schema import Trial
from lqray.orchestration.code_version import training_code
from lqray.orchestration.failures import CodeChangedError, MemoryLimitError, PartChangedError, failure_of
from lqray.orchestration.worker.logs import output_to_log
from lqray.orchestration.worker.places import look_in
from lqray.orchestration.worker.reporter import Reporter
from lqray.orchestration.worker.task import Link, Outcome, WorkerTask
from lqray.training.reports import Place, Report, StoppedError


def run_task(
    task: WorkerTask, rank: int, device: str, link: Link | None, logged: bool = True, place: Place | None = None
) -> Outcome:
    """Train the task's trial on this rank, from its last checkpoint where it has one. Raises only KeyboardInterrupt.

    link: on rank 0. logged: whether this process's output goes to the trial's log while it trains; not for a process
    that talks to the user. place: of this process among those of the trial, where nobody has made their group.
    """
    say = _say if logged else (lambda line: None)
    try:
        reporter = Reporter(task, link, say) if link else None
    except Exception as error:  # the trial's folder cannot be read
        return Outcome(failure=failure_of(error, rank))
    if reporter is None:
        return _outcome(task, rank, device, None, logged, place)
    try:
        outcome = _outcome(task, rank, device, reporter, logged, place)
        return replace(outcome, points=reporter.count, **reporter.seen)
    finally:
        reporter.close()


def _outcome(
    task: WorkerTask, rank: int, device: str, reporter: Reporter | None, logged: bool, place: Place | None
) -> Outcome:
    try:
        with ExitStack() as stack:
            if logged:
                stack.enter_context(output_to_log(task, rank))
            return Outcome(metrics=_train(task, rank, device, reporter, stack, place))
    except StoppedError:
        return Outcome(stopped=reporter.broken_rule or "" if reporter else "")
    except Exception as error:
        return Outcome(failure=failure_of(error, rank))


def _train(
    task: WorkerTask, rank: int, device: str, reporter: Reporter | None, stack: ExitStack, place: Place | None
) -> dict[str, float]:
    if training_code() != task.code:
        raise CodeChangedError(
            f"lqray's code for training is {training_code()} on {socket.gethostname()} and was {task.code} when this "
            "launch began: it was edited meanwhile, or this machine has another version. Run the same command again, "
            "with the same version everywhere"
        )
    look_in(task.places)
    trial = Trial.model_validate(task.config)
    _check_own_parts(task, trial)
    import torch

    from lqray.training.checkpoint import Checkpoints
    from lqray.training.worker import run_worker

    resources, storage = task.resources, task.storage
    if resources.memory_gib_per_process:
        stack.enter_context(_memory_limit(resources.memory_gib_per_process, task, rank))
    checkpoints = Checkpoints(
        task.folder,
        storage.checkpoint_every,
        storage.keep,
        reporter.secure if reporter else None,
        run=task.run_id,
        continued=task.continued,
    )
    return run_worker(
        trial,
        reporter.report if reporter else _nothing,
        torch.device(device),
        resources.cpus_per_process,
        resources.timeout_seconds,
        checkpoints,
        stop=reporter.stop if reporter else _never,
        backend=task.backend,
        network_interface=resources.network_interface,
        place=place,
    )


def _check_own_parts(task: WorkerTask, trial: Trial) -> None:
    """Raise PartChangedError where this process finds other code for a user's own part than its launch recorded."""
    here = own_digests(trial)
    for part, there in task.own_parts.items():
        if here.get(part) != there:
            raise PartChangedError(
                f"{part}: its code is {here.get(part)} on {socket.gethostname()} and was {there} when this launch "
                "began: its files were edited meanwhile, or this machine has other ones. Run the same command again, "
                "with the same files everywhere"
            )


def _say(line: str) -> None:
    """At once: a process that is killed shall have said what it did."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _nothing(report: Report) -> None:
    """Other ranks than 0 have nothing to tell."""


def _never() -> bool:
    """Only rank 0 is asked."""
    return False


@contextmanager
def _memory_limit(gib: float, task: WorkerTask, rank: int) -> Iterator[None]:
    """Within it, this process's resident memory is looked at five times a second; beyond the limit, MemoryLimitError is
    raised in this thread as soon as it runs Python."""
    over = threading.Event()
    thread = threading.get_ident()
    exceeded: list[float] = []

    def watch() -> None:
        while not over.wait(0.2):
            used = _resident_bytes() / 2**30
            if used > gib:
                exceeded.append(used)
                raising = ctypes.pythonapi.PyThreadState_SetAsyncExc
                raising(ctypes.c_ulong(thread), ctypes.py_object(MemoryLimitError))
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except MemoryLimitError:
        raise MemoryLimitError(
            f"rank {rank} of {task.name} uses {exceeded[0]:.2f} GiB, resources.memory_gib_per_process allows {gib:g}"
        ) from None
    finally:
        over.set()


def _resident_bytes() -> int:
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident
