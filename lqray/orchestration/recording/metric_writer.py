"""The process that delivers metrics to MLflow, with a low priority; `lqray.orchestration.recording.metrics` is its
launcher's side.

MLflow takes some 70 microseconds of Python for a point. In a thread beside training that would hold up every operator
through the interpreter's lock; at low priority in another process it uses what training leaves.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from lqray.experiment.secrets import masked
from lqray.orchestration.recording.claims import now
from lqray.orchestration.signals import leave_to_launcher
from lqray.orchestration.worker.points import Point
from lqray.store.client import client_of
from lqray.store.deleted_runs import is_deleted, is_refusal
from lqray.store.outage import is_away
from lqray.store.tags import PROGRESS

ALIVE_SECONDS = 2.0
"""From one sign of life to the next."""

_DELIVER_SECONDS = 1.5
_NICENESS = 10  # a tenth of a core, at most, where training wants all of them
_BATCH = 1000
_FIRST_DELAY, _LAST_DELAY = 0.5, 15.0
_BAD_NAME = 3  # so many points of a metric refused, and none accepted: it is the metric that is refused

Tell = Callable[[tuple[Any, ...]], None]
"""Tells the launcher, always (what, run, its number, ...): delivered, how many of its oldest points are dealt with;
gone; refused, metric, why; trouble, why, whether the store is away."""


class Delivery:
    """What is to be delivered of one run. number: the launcher's, which it changes when it begins to count anew. steps:
    the last of each metric in the store, None when that has to be asked."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.points: deque[Point] = deque()
        self.steps: dict[str, int] | None = None
        self.progress: str | None = None
        self.refused: set[str] = set()
        self.gone = False
        self.due = 0.0
        self.delay = _FIRST_DELAY

    @property
    def waits(self) -> bool:
        """Whether there is something to deliver."""
        return bool(self.points or self.progress)

    def postpone(self) -> None:
        """Try again after a while, each time a longer one."""
        self.due = time.monotonic() + self.delay
        self.delay = min(2 * self.delay, _LAST_DELAY)


@dataclass
class Deliveries:
    """What is to be delivered, by run. until: deliver until then (`lqray.orchestration.recording.claims.now`)."""

    runs: dict[str, Delivery] = field(default_factory=dict)
    until: float = math.inf


def serve(uri: str, pipe: Connection) -> None:
    """The process. It ends when told to, or with the launcher: what is not delivered then is beside the checkpoints, or
    will be computed again."""
    leave_to_launcher()
    telling = threading.Lock()

    def tell(message: tuple[Any, ...]) -> None:
        with telling:
            pipe.send(message)

    threading.Thread(target=_show_life, args=(tell,), daemon=True).start()
    try:
        _work(uri, pipe, tell)
    except (EOFError, OSError):
        return


def _show_life(tell: Tell) -> None:
    """A store may keep a call waiting for long; a process that says nothing at all hangs, and is replaced."""
    try:
        while True:
            tell(("alive",))
            time.sleep(ALIVE_SECONDS)
    except OSError:
        return


def _work(uri: str, pipe: Connection, tell: Tell) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (a client would import it later)

    # Before, on a machine that has much to do, the imports would take minutes. Not the lowest priority of all: the end
    # of a trial waits for its last points.
    os.nice(_NICENESS)
    client = None
    deliveries = Deliveries()
    while True:
        if not _take(pipe, deliveries):
            return
        for run_id, delivery in list(deliveries.runs.items()):
            if delivery.waits and delivery.due <= time.monotonic():
                try:
                    client = client or client_of(uri)
                except Exception as error:  # as `deliver` does with a store that is away
                    _tell_trouble(tell, run_id, delivery, error)
                    delivery.postpone()
                    continue
                deliver(client, run_id, delivery, tell, deliveries.until)


def _take(pipe: Connection, deliveries: Deliveries) -> bool:
    """Wait for messages, or until something is due; False: the end."""
    runs = deliveries.runs
    waiting = [delivery.due for delivery in runs.values() if delivery.waits]
    pause = max(0.0, min(waiting) - time.monotonic()) if waiting else None
    while pipe.poll(pause):
        pause = 0.0  # what is due is, however many messages come
        what, *content = pipe.recv()
        if what == "close":
            return False
        if what == "until":
            deliveries.until = content[0]
            continue
        run_id, number = content[:2]
        if what == "open":
            runs[run_id] = Delivery(number)
        elif what == "forget":
            runs.pop(run_id, None)
        elif what == "flush" and run_id in runs:
            runs[run_id].due = 0.0
        elif what == "write":
            delivery = runs.setdefault(run_id, Delivery(number))
            if not delivery.waits:
                delivery.due = max(delivery.due, time.monotonic() + _DELIVER_SECONDS)
            delivery.points.extend(content[2])
            delivery.progress = content[3] or delivery.progress
    return True


def deliver(client: Any, run_id: str, delivery: Delivery, tell: Tell, until: float = math.inf) -> None:
    """One batch of one run, or more while they are full; none after `until`. Points of a run that is gone are dropped,
    and a metric that MLflow refuses costs no other; everything else that goes wrong is tried again, in order, however
    long it takes."""
    while delivery.waits:
        if now() >= until:
            delivery.due = time.monotonic() + _FIRST_DELAY
            return
        count = len(delivery.points)
        if not delivery.gone:
            try:
                count = _write_batch(client, run_id, delivery, tell)
            except Exception as error:
                delivery.steps = None  # it may have arrived all the same
                if not _deleted(client, run_id, error):
                    _tell_trouble(tell, run_id, delivery, error)
                    delivery.postpone()
                    return
                delivery.gone = True
                tell(("gone", run_id, delivery.number))
                continue
        delivery.delay = _FIRST_DELAY
        delivery.progress = None
        for _ in range(count):
            delivery.points.popleft()
        tell(("delivered", run_id, delivery.number, count))
    delivery.due = time.monotonic() + _DELIVER_SECONDS


def _write_batch(client: Any, run_id: str, delivery: Delivery, tell: Tell) -> int:
    """How many points are dealt with."""
    from mlflow.entities import Metric, RunTag

    if delivery.steps is None:
        delivery.steps = _last_steps(client, run_id)
    steps, count = dict(delivery.steps), 0
    batch: list[Any] = []
    for point in delivery.points:
        fresh = {
            key: value
            for key, value in point.metrics.items()
            if point.step > steps.get(key, -1) and key not in delivery.refused
        }
        if len(batch) + len(fresh) > _BATCH and batch:
            break
        batch += [Metric(key, value, point.time, point.step) for key, value in fresh.items()]
        steps |= dict.fromkeys(fresh, point.step)
        count += 1
    tags = [RunTag(PROGRESS, delivery.progress)] if delivery.progress else []
    if batch or tags:
        try:
            client.log_batch(run_id, metrics=batch, tags=tags)
        except Exception as error:
            if not is_refusal(error) or not batch or is_deleted(client, run_id):
                raise
            _write_apart(client, run_id, delivery, batch, tell)
    delivery.steps = steps
    return count


def _write_apart(client: Any, run_id: str, delivery: Delivery, batch: list[Any], tell: Tell) -> None:
    """Metric by metric, and where one is refused point by point: what is refused is said, the rest is written."""
    by_key: dict[str, list[Any]] = {}
    for metric in batch:
        by_key.setdefault(metric.key, []).append(metric)
    for key, metrics in by_key.items():
        accepted = refused = 0
        for part in _parts(metrics):
            if not accepted and refused >= _BAD_NAME:
                break
            try:
                client.log_batch(run_id, metrics=part)
            except Exception as error:
                if not is_refusal(error) or is_deleted(client, run_id):
                    raise
                if len(part) < len(metrics) or len(metrics) == 1:
                    refused += 1
                    tell(("refused", run_id, delivery.number, key, masked(str(error))))
                continue
            accepted += 1
            if len(part) == len(metrics):
                break
        if refused and not accepted:
            delivery.refused.add(key)


def _parts(metrics: list[Any]) -> Iterator[list[Any]]:
    """All of them, and then, if that is wanted still, one by one."""
    yield metrics
    if len(metrics) > 1:
        for metric in metrics:
            yield [metric]


def _deleted(client: Any, run_id: str, error: Exception) -> bool:
    """Whether a call failed because the run is deleted; not known while the store does not answer."""
    if not is_refusal(error):
        return False
    try:
        return is_deleted(client, run_id)
    except Exception:  # asked again with the next attempt
        return False


def _tell_trouble(tell: Tell, run_id: str, delivery: Delivery, error: Exception) -> None:
    tell(("trouble", run_id, delivery.number, masked(f"{type(error).__name__}: {error}"), is_away(error)))


def _last_steps(client: Any, run_id: str) -> dict[str, int]:
    """The last step of each metric of a run."""
    return {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}
