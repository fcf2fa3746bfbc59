"""The inline launcher: trials one after the other on this machine, without Ray.

A trial of one process trains in this one; one of several starts processes with torchrun's environment variables.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Resources
from lqray.orchestration.launcher import LaunchInterrupted, Observer, TrialResult, sigterm_as_interrupt
from lqray.orchestration.placement import processes_of
from lqray.orchestration.tracking import Launch, recorded_run
from lqray.orchestration.worker import WorkerTask, work
from lqray.training.loop import Report


class InlineLauncher:
    """See `lqray.orchestration.launcher.Launcher`."""

    def __init__(self, launch: Launch, resources: Resources, observer: Observer) -> None:
        self._launch = launch
        self._resources = resources
        self._observer = observer

    def launch(self, trials: Iterable[NamedTrial], on_result: Callable[[TrialResult], None]) -> None:
        """See `lqray.orchestration.launcher.Launcher.launch`."""
        with sigterm_as_interrupt():
            for named in trials:
                processes_of(named.trial, self._resources)
                result = self._run(named)
                self._observer.ended(result)
                on_result(result)
                if result.status == "KILLED":
                    raise LaunchInterrupted

    def _run(self, named: NamedTrial) -> TrialResult:
        self._observer.started(named)
        run_id = None
        try:
            with recorded_run(self._launch, named) as run_id:
                task = WorkerTask(named.trial.config(), self._resources, self._launch.uri, run_id)

                def progress(report: Report) -> None:
                    self._observer.progressed(named.trial.id, report)

                processes = processes_of(named.trial, self._resources)
                if processes == 1:
                    metrics = work(task, 0, self._device(0), progress)
                else:
                    metrics = _run_processes(task, processes, self._device, progress)
            return TrialResult(named, "FINISHED", metrics, run_id)
        except KeyboardInterrupt:
            return TrialResult(named, "KILLED", run_id=run_id)
        except Exception:
            return TrialResult(named, "FAILED", run_id=run_id, error=traceback.format_exc())

    def _device(self, rank: int) -> str:
        return f"cuda:{rank}" if self._resources.gpus_per_process else "cpu"


def _run_processes(
    task: WorkerTask, world: int, device: Callable[[int], str], progress: Callable[[Report], None]
) -> dict[str, float]:
    """Train on `world` processes; the first to fail ends the others, and its traceback is raised here."""
    from torch.multiprocessing.spawn import start_processes

    messages: Any = multiprocessing.get_context("spawn").SimpleQueue()
    final: dict[str, float] = {}

    def listen() -> None:
        while (message := messages.get()) is not None:
            if isinstance(message, Report):
                progress(message)
            else:
                final.update(message)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    devices = [device(rank) for rank in range(world)]
    processes = start_processes(
        _process, (task, world, _free_port(), devices, messages), nprocs=world, join=False, start_method="spawn"
    )
    try:
        while not processes.join(timeout=1.0):
            pass
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
            process.join()
        messages.put(None)
        listener.join()
    return final


def _process(rank: int, task: WorkerTask, world: int, port: int, devices: list[str], messages: Any) -> None:
    # Ctrl-C reaches every process of the terminal; the launcher alone decides what it means.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    metrics = work(task, rank, devices[rank], messages.put)
    if rank == 0:
        messages.put(metrics)
    _leave()


def _leave() -> NoReturn:
    """End this process, all its work done, without the interpreter's own end.

    DDP keeps the process group's threads alive past its destruction. One that asks for the GIL while the interpreter
    ends is unwound through C++ code that allows no unwinding, and aborts the process ("terminate called without an
    active exception"): seen on a busy machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
