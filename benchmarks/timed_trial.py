"""One rank of a trial on a host of benchmarks/time_to_target.py, by lqray's own loop, with the seconds of each step."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
    off. steps: run no more than so many, and evaluate nothing; None: the trial's. alone: each host trains by itself."""

    trial: dict[str, Any]
    metric: str
    higher: bool
    target: float
    seconds: float
    steps: int | None = None
    alone: bool = False


@dataclass
class Steps:
    """Of rank 0. seconds, bytes: of each step. phases: seconds of an exchange's phases, by the step it began in.
    curve: (steps, metric) of the evaluations. reached: steps until the target. cut: whether time ran out."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    reached: int | None = None
    cut: bool = False


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


def run(order: Order) -> Steps:
    """Train on this rank until the target is reached, the schedule ends, or the order's steps or seconds are over."""
    trial, found, began = Trial.model_validate(order.trial), Steps(), time.monotonic()

    def report(update: Report) -> None:
        value = update.metrics.get(order.metric) if update.evaluated else None
        if value is None:
            return
        found.curve.append((update.iteration, value))
        if found.reached is None and (value >= order.target if order.higher else value <= order.target):
            found.reached = update.iteration

    def stop() -> bool:
        found.cut = found.reached is None and time.monotonic() - began > order.seconds
        return found.cut or found.reached is not None

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
