"""One rank of a trial on a host, by lqray's own loop, with the seconds of each step; and several of them on hosts."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from unittest import mock

import torch

from lqray.communication import Volume
from lqray.experiment.schema import Trial
from lqray.training import loop
from lqray.training.reports import Report, StoppedError
from lqray.training.telemetry import Spent
from lqray.training.worker import run_worker

PHASES = ("encode", "exchange", "decode")
WARM_UP = 12
"""Steps that are not typical: DDP lays its buckets out, PowerSGD exchanges its first ten in full precision."""


@dataclass(frozen=True)
class Order:
    """What a host is to run. metric, higher, target: where the run ends. seconds: of training, after which it is cut
    off. steps: run no more than so many, and evaluate nothing; None: the trial's. alone: each host trains by itself.
    to_the_end: of the schedule, also where the target is reached before."""

    trial: dict[str, Any]
    metric: str
    higher: bool
    target: float
    seconds: float
    steps: int | None = None
    alone: bool = False
    to_the_end: bool = False


@dataclass
class Steps:
    """Of rank 0. seconds, bytes: of each step. phases: seconds of an exchange's phases, by the step it began in.
    curve: (steps, metric) of the evaluations. reached: steps until the target. cut: whether time ran out. measured: by
    step, what telemetry says of its phases and bytes."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    reached: int | None = None
    cut: bool = False
    measured: dict[int, dict[str, float]] = field(default_factory=dict)


def warm_up(every: int | None) -> int:
    """Steps of a trial that its typical ones are counted after, whole rounds with `exchange.every`."""
    return WARM_UP if every is None else every * -(-WARM_UP // every)


def typical(values: Sequence[float], every: int | None) -> float:
    """Mean over the steps after the warm-up, with `exchange.every` over whole rounds of them; of all steps where none
    are left."""
    first, length = warm_up(every), every or 1
    left = values[first : first + (len(values) - first) // length * length]
    return statistics.fmean(left or values)


def totalled(values: Sequence[float], every: int | None, steps: int) -> float:
    """Sum over a run of so many steps, of which the first were measured: those after them are as the typical one."""
    known = min(len(values), steps, warm_up(every))
    return sum(values[:known]) + (steps - known) * typical(values, every)


def on_host(text: str) -> None:
    """Run the order that a JSON text is; rank 0 prints `RESULT` and what it found."""
    order = Order(**json.loads(text))
    rank = int(os.environ["RANK"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    found = run(order)
    if rank == 0:
        print("RESULT " + json.dumps(vars(found)), flush=True)


def on_hosts(script: str, order: Order, hosts: int, rate: str | None, timeout: float) -> tuple[Steps, int]:
    """Run an order on so many hosts, by `script --host ORDER`: what rank 0 found, and bytes that its interface sent.
    rate: of the links, as `shaped_hosts` takes it."""
    from tests.testing.shaped_hosts import shaped_hosts

    if order.steps is not None:
        never = order.trial["schedule"] | {"evaluate_every": 10**6}
        order = replace(order, trial=order.trial | {"schedule": never})
    with shaped_hosts(hosts, rate) as made:
        said = made.run([sys.executable, script, "--host", json.dumps(asdict(order))], timeout=timeout)
        sent = made.sent_bytes(0)
    line = next(line for line in said[0].splitlines() if line.startswith("RESULT "))
    return Steps(**json.loads(line.removeprefix("RESULT "))), sent


def run(order: Order) -> Steps:
    """Train on this rank until the target is reached, the schedule ends, or the order's steps or seconds are over."""
    trial, found, began = Trial.model_validate(order.trial), Steps(), time.monotonic()

    def report(update: Report) -> None:
        own = {key: value for key, value in update.metrics.items() if key.startswith(("time/", "wire/"))}
        found.measured.setdefault(update.iteration, {}).update(own)
        value = update.metrics.get(order.metric) if update.evaluated else None
        if value is None:
            return
        found.curve.append((update.iteration, value))
        if found.reached is None and (value >= order.target if order.higher else value <= order.target):
            found.reached = update.iteration

    def stop() -> bool:
        there = found.reached is not None and not order.to_the_end
        found.cut = not there and time.monotonic() - began > order.seconds
        return found.cut or there

    def after_step(at: loop.Stepped) -> None:
        if at.done == order.steps:
            raise StoppedError(at.done)

    place = None if order.alone else "environment"
    with _watched(found), suppress(StoppedError):
        run_worker(trial, report, torch.device("cpu"), 1, 3600.0, after_step=after_step, stop=stop, place=place)
    return found


@contextmanager
def _watched(found: Steps) -> Iterator[None]:
    """Have the loop's own clock of training, which leaves evaluations out, and its exchange tell of each step."""
    connect = loop.connect
    volumes: list[Any] = []

    class Watched(Spent):
        def end_step(self, volume: Volume) -> None:
            before = self.seconds or 0.0
            super().end_step(volume)
            found.seconds.append((self.seconds or 0.0) - before)
            found.bytes.append(volume.bytes_sent)
            found.phases.append(_phases_of(volumes))

    @contextmanager
    def connected(*arguments: Any) -> Iterator[Any]:
        with connect(*arguments) as wires:
            if wires.exchange:
                volumes[:] = [wires.exchange, None]
            yield wires

    with mock.patch.object(loop, "connect", connected), mock.patch.object(loop, "Spent", Watched):
        yield


def _phases_of(volumes: list[Any]) -> dict[str, float]:
    """Of an exchange that a step began; zeros where it began none."""
    if not volumes or volumes[0].volume is volumes[1]:
        return dict.fromkeys(PHASES, 0.0)
    volumes[1] = volumes[0].volume
    return {phase: volumes[1].seconds(phase) for phase in PHASES}
