"""What a worker process does under every launcher: run its task's trial; rank 0 tells the launcher what it measures."""

from __future__ import annotations

import ctypes
import math
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lqray.experiment.options import Storage
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.code_version import training_code
from lqray.orchestration.failures import CodeChangedError, Failure, MemoryLimitError, failure_of
from lqray.orchestration.fencing import Fence
from lqray.orchestration.points import Point
from lqray.orchestration.rank_logs import host_and_process, output_to_log
from lqray.orchestration.stop_rules import StopRule
from lqray.orchestration.system_metrics import EVERY_SECONDS, SystemMetrics
from lqray.training.reports import Place, Report, StoppedError
from lqray.training.storage import open_folder

_SEND_SECONDS = 0.5


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker needs, as plain data. config: `Trial.config()`. folder: of the trial's checkpoints and
    logs. start: counts how often the launch started the trial. backend: of the process group. code: `training_code()`
    of the launcher. needed_metric: what early stopping or the search goes by. system_metrics: whether rank 0 records
    how busy its machine is. recorded: the last step that the store has of the run. claim: by which it writes to the
    folder (`lqray.orchestration.fencing`). continued: whether the run was begun before."""

    trial_id: str
    name: str
    config: dict[str, Any]
    resources: Resources
    storage: Storage
    folder: str
    run_id: str
    start: int
    backend: str
    code: str
    stop_rules: tuple[StopRule, ...] = ()
    needed_metric: str | None = None
    system_metrics: bool = False
    recorded: int = 0
    claim: str = ""
    continued: bool = False


@dataclass(frozen=True)
class News:
    """From rank 0 to the launcher. start: of its task. report: the latest value of every metric, for people to see."""

    trial_id: str
    start: int
    points: list[Point]
    report: Report | None = None
    host: str = ""


@dataclass(frozen=True)
class Heard:
    """What rank 0 last heard from its launcher. delivered: how many of its points MLflow has."""

    delivered: int = 0
    stop: bool = False


class Link(Protocol):
    """Rank 0's line to the launcher. Neither method waits."""

    def send(self, news: News) -> None:
        """Send, in order."""

    def heard(self) -> Heard:
        """The launcher's latest word."""

    def close(self) -> None:
        """Wait until all that was sent has arrived."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended on one rank: with metrics, a failure, or stopped (by which rule; "" for the launcher's wish).
    snapshot, examples, lost: of rank 0, the last that it reported (`lqray.training.reports.Report`). points: how many
    rank 0 sent."""

    metrics: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    stopped: str | None = None
    snapshot: dict[str, Any] | None = None
    examples: tuple[int, int] | None = None
    points: int | None = None
    lost: tuple[str, ...] = ()


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
        Trial.model_validate(task.config),
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


def _say(line: str) -> None:
    """At once: a process that is killed shall have said what it did."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _nothing(report: Report) -> None:
    """Other ranks than 0 have nothing to tell."""


def _never() -> bool:
    """Only rank 0 is asked."""
    return False


class Reporter:
    """Rank 0's reports on their way to the launcher.

    A point is kept until MLflow has it. Before a checkpoint is written, those that it does not have yet are written
    beside it: a run that continues there sends them first, so that none is lost, wherever the launcher or MLflow was.
    """

    def __init__(self, task: WorkerTask, link: Link, say: Callable[[str], object]) -> None:
        from lqray.orchestration.spool import read_spool  # which imports torch, for seconds

        self._task, self._link, self._say = task, link, say
        self._folder = open_folder(task.folder)
        self._fence = Fence(self._folder, task.claim)
        self._fence.take()
        self._kept: deque[tuple[int, Point]] = deque()
        self.count = self._sent = 0
        self._shown = 0.0
        self._latest: dict[str, float] = {}
        self._last: Report | None = None
        self._remarks: tuple[str, ...] = ()
        self.broken_rule: str | None = None
        self.seen: dict[str, Any] = {}
        """What its reports told beside metrics: for the trial's end."""
        self._system = SystemMetrics() if task.system_metrics else None
        self._sampled = time.monotonic()
        points, word = read_spool(self._folder, task.trial_id, task.run_id, task.recorded)
        if word:
            warnings.warn(word, stacklevel=3)
            say(word)
        for point in points:
            self._keep(point)

    def report(self, update: Report) -> None:
        """Send it, with others, at most twice a second, but at once with an evaluation. NaN is not for MLflow, whose
        charts and comparisons cannot show it."""
        finite = {key: float(value) for key, value in update.metrics.items() if not math.isnan(value)}
        self._keep(Point(update.iteration, int(time.time() * 1000), finite | self._busy(update)))
        self._latest |= update.metrics
        self._remarks += update.remarks
        self._last = replace(update, metrics=dict(self._latest), snapshot=None, remarks=self._remarks)
        self.seen = {"snapshot": update.snapshot, "examples": update.examples, "lost": update.lost}
        for rule in self._task.stop_rules:
            if not update.final and self.broken_rule is None and rule.broken(update.iteration, update.metrics):
                self.broken_rule = str(rule)
        needed = self._task.needed_metric
        begun = self._task.continued or self._task.start > 1  # it may have been measured before the checkpoint
        if update.evaluated and needed and needed not in self._latest and not begun:
            raise ValueError(
                f"no metric {needed!r} is reported, by which `search` goes; there are: "
                f"{', '.join(sorted(self._latest))}"
            )
        if update.evaluated or time.monotonic() - self._shown > _SEND_SECONDS:
            self._send()
        if update.evaluated:
            self._say(_line(update))

    def stop(self) -> bool:
        """Whether a rule is broken or the launcher wants the trial to stop."""
        if time.monotonic() - self._shown > _SEND_SECONDS:
            self._send()
        return self.broken_rule is not None or self._link.heard().stop

    def secure(self) -> None:
        """Write what MLflow does not have yet beside the checkpoint that is about to be written. Raises LostClaimError
        where this worker must not write any more."""
        from lqray.orchestration.spool import write_spool

        self._fence.check()
        self._forget_delivered()
        write_spool(self._folder, self._task.trial_id, self._task.run_id, [point for _, point in self._kept])

    def close(self) -> None:
        """Send the rest, and wait until the launcher has it."""
        self._send()
        self._link.close()

    def _busy(self, update: Report) -> dict[str, float]:
        """How busy the machine is, every ten seconds and at the end. For MLflow only: not a metric of the trial."""
        if self._system is None or (not update.final and time.monotonic() - self._sampled < EVERY_SECONDS):
            return {}
        self._sampled = time.monotonic()
        try:
            return self._system.sample()
        except (OSError, RuntimeError) as error:  # what a machine does not show must not cost the trial
            self._say(f"no more system metrics: {error!r}")
            self._system = None
            return {}

    def _keep(self, point: Point) -> None:
        self.count += 1
        self._kept.append((self.count, point))

    def _send(self) -> None:
        self._shown = time.monotonic()
        self._forget_delivered()
        points = [point for number, point in self._kept if number > self._sent]
        self._sent = self.count
        self._link.send(News(self._task.trial_id, self._task.start, points, self._last, host_and_process()))
        if self._last:
            self._last, self._remarks = None, ()

    def _forget_delivered(self) -> None:
        delivered = self._link.heard().delivered
        while self._kept and self._kept[0][0] <= delivered:
            self._kept.popleft()


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


def _line(report: Report) -> str:
    chosen = {key: value for key, value in sorted(report.metrics.items()) if key.startswith(("train", "test"))}
    shown = "  ".join(f"{key} {value:.5g}" for key, value in chosen.items())
    return f"step {report.iteration}/{report.iterations}  {shown}"
