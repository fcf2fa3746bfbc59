"""The steps of recorded runs on links that they did not run on, as `links` models them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from lqray.experiment.foreign import whole_number
from lqray.reporting.comparison import Comparison, Group
from lqray.reporting.histories import History, read_histories
from lqray.reporting.links import (
    REDUCTIONS,
    Link,
    Step,
    break_even,
    sixteen_bits,
    split_payload,
)
from lqray.store.runs import Run

_EACH = ("data", "forward", "backward")
"""Phases of every worker; a process has one optimizer."""
_PHASES = (*_EACH, "optimizer", "encode", "decode")
_RINGS = {"full_precision": 1, "fp16": 1, "bf16": 1, "powersgd": 3}
"""Methods of all-reduces, and how many they take for a bucket."""
_CAP = 25.0
_FIRST_BUCKET = 2**20
"""Bytes, of DDP."""
_Phases = Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step, and how many times as long one of bf16 would take, modelled alike."""

    link: Link
    workers: int
    seconds: float
    by_bf16: float


@dataclass(frozen=True)
class Modelled:
    """Of a group, whose runs' steps were averaged. break_even: by number of workers, bits a second of the links below
    which it is faster than bf16; see `links.break_even`."""

    step: Step
    predictions: tuple[Prediction, ...]
    break_even: Mapping[int, float]


@dataclass(frozen=True)
class _Counted:
    """Of a run: its step but for `compute`, which other runs know better, coordinates of the network, and workers of a
    process."""

    step: Step
    coordinates: float
    share: int


@dataclass(frozen=True)
class Predictions:
    """Of a comparison. groups: of its groups; None of one whose runs did not record what the model takes, and of a
    reduction that is not in it."""

    links: tuple[Link, ...]
    workers: tuple[int, ...]
    groups: tuple[Modelled | None, ...]


def predictions(uri: str, comparison: Comparison, links: Sequence[Link], workers: Sequence[int]) -> Predictions:
    """For each link and number of workers. `break_even` is with the latency of the first link.

    Computing is the same whatever the method: of the finished runs of equal data, network, batch and optimizer, that
    which took the shortest counts for all, since the backward phase of each includes what its own exchange made it
    wait. Of a run the medians over its measured steps count, without the first.
    """
    runs = [one for group in comparison.groups for one in group.finished]
    phases = _phases(uri, runs)
    counted = {one.run_id: _counted(one, phases.get(one.run_id, {})) for one in runs}
    compute: dict[tuple[tuple[str, str], ...], float] = {}
    for one in runs:
        own = _compute(one, phases.get(one.run_id, {}), counted[one.run_id])
        compute[_like(one)] = min(own, compute.get(_like(one), math.inf))
    groups = (_of_group(group, counted, compute, links, workers) for group in comparison.groups)
    return Predictions(tuple(links), tuple(workers), tuple(groups))


def _of_group(
    group: Group,
    counted: Mapping[str, _Counted | None],
    compute: Mapping[tuple[tuple[str, str], ...], float],
    links: Sequence[Link],
    workers: Sequence[int],
) -> Modelled | None:
    known = [(found, compute[_like(one)]) for one in group.finished if (found := counted[one.run_id])]
    known = [(found, seconds) for found, seconds in known if math.isfinite(seconds)]
    if not known:
        return None
    steps, alone = [found.step for found, _ in known], statistics.fmean(seconds for _, seconds in known)
    means = {
        name: statistics.fmean(getattr(one, name) for one in steps)
        for name in ("payload", "mean", "encode", "decode", "messages")
    }
    step = Step(steps[0].reduction, alone, **means)
    coordinates = statistics.fmean(found.coordinates for found, _ in known)
    plain = sixteen_bits(coordinates, alone, _buckets(group.finished[0], coordinates))
    predicted = []
    for link in links:
        for count in workers:
            seconds = step.seconds(count, link)
            predicted.append(Prediction(link, count, seconds, plain.seconds(count, link) / seconds))
    limits = {count: break_even(step, plain, count, links[0].latency) for count in workers}
    return Modelled(step, tuple(predicted), limits)


def _phases(uri: str, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """By run id and phase, seconds."""
    found: dict[str, dict[str, float]] = {}
    for experiment in dict.fromkeys(one.experiment for one in runs):
        ids = [one.run_id for one in runs if one.experiment == experiment]
        for phase in _PHASES:
            for run_id, points in read_histories(uri, experiment, ids, f"time/{phase}_seconds").items():
                if (seconds := _median(points)) is not None:
                    found.setdefault(run_id, {})[phase] = seconds
    return found


def _median(points: History) -> float | None:
    values = points.values[1:] if len(points) > 1 else points.values
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _counted(run: Run, phases: _Phases) -> _Counted | None:
    """None where a run did not record what it sends, or what its encoding takes."""
    reduction = "all_reduce" if run.method in _RINGS else run.params.get("exchange.reduction", "all_gather")
    handed, sent = run.metrics.get("wire/payload_bytes", 0.0), run.metrics.get("wire/bytes_sent", 0.0)
    bits, workers = run.metrics.get("wire/bits_per_coordinate", math.nan), _whole(run, "workers", 1)
    if not all(map(math.isfinite, (handed, sent, bits))) or bits <= 0 or reduction not in REDUCTIONS:
        return None
    held = 8 * handed / bits  # coordinates of all workers of a process; an all-reduce takes their mean
    expected = handed / 2 if run.method == "random_k" else _encoded_mean(run, held)
    split = split_payload(reduction, workers, handed, sent, expected)
    if split is None or (reduction != "all_reduce" and not {"encode", "decode"} <= phases.keys()):
        return None
    share, payload, mean = split
    coordinates = held if reduction == "all_reduce" else held / share
    encode = decode = 0.0
    if reduction != "all_reduce":
        decoded = workers if reduction == "all_gather" else share + 1
        encode, decode = (_rate(run) * one for one in (phases["encode"] / share, phases["decode"] / decoded))
    messages = _buckets(run, coordinates) * _RINGS.get(run.method, 1)
    kind = cast(Literal["all_gather", "scatter_reduce", "all_reduce"], reduction)
    return _Counted(Step(kind, 0.0, payload, mean, encode, decode, messages), coordinates, share)


def _compute(run: Run, phases: _Phases, counted: _Counted | None) -> float:
    """Seconds of one worker's step, at most; infinity where they are not known."""
    share = counted.share if counted else 1 if _whole(run, "workers", 1) == 1 else 0
    if not share or not {"forward", "backward"} <= phases.keys():
        return math.inf
    return sum(phases.get(phase, 0.0) for phase in _EACH) / share + phases.get("optimizer", 0.0)


def _encoded_mean(run: Run, coordinates: float) -> float:
    """Bytes of scatter_reduce's second encoding, about."""
    size = _whole(run, "quantizer.bucket_size", 8192)
    return coordinates * _whole(run, "exchange.gather_bits", 8) / 8 + 4 * math.ceil(coordinates / size)


def _buckets(run: Run, coordinates: float) -> float:
    """Collectives a step, about: DDP's buckets; with `exchange.every` those of all fragments, over H steps."""
    cap, held = _megabytes(run) * 2**20, 4 * coordinates
    every = _whole(run, "exchange.every", 0)
    if every:
        return max(_whole(run, "exchange.fragments", 1), math.ceil(held / cap)) / every
    if run.method == "powersgd" or held <= min(cap, _FIRST_BUCKET):
        return 1
    return 1 + math.ceil((held - min(cap, _FIRST_BUCKET)) / cap)


def _megabytes(run: Run) -> float:
    try:
        found = float(run.params.get("exchange.bucket_cap_mb", _CAP))
    except ValueError:  # of a run that is not lqray's own
        return _CAP
    return found if found > 0 else _CAP


def _rate(run: Run) -> float:
    """Exchanges a step."""
    every = _whole(run, "exchange.every", 0)
    return _whole(run, "exchange.fragments", 1) / every if every else 1.0


def _whole(run: Run, key: str, otherwise: int) -> int:
    return whole_number(run.params.get(key, str(otherwise)), otherwise)


def _like(run: Run) -> tuple[tuple[str, str], ...]:
    """What decides how long computing takes."""
    chosen = ("schedule.batch_size", "schedule.accumulate", "optimizer.name")
    items = sorted(run.params.items())
    return tuple((key, value) for key, value in items if key.startswith(("data.", "model.")) or key in chosen)
