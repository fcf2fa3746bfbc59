"""The steps of recorded runs on links that they did not run on, as `links` models them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from lqray.experiment.foreign import whole_number
from lqray.reporting.comparison import Comparison
from lqray.reporting.histories import History, read_histories
from lqray.reporting.links import (
    REDUCTIONS,
    Link,
    Step,
    break_even,
    sixteen_bits,
    split_hosts,
    split_payload,
)
from lqray.store.runs import Run

_EACH = ("data", "forward", "backward")
"""Phases of every worker; a process has one optimizer, but with `exchange.every` one for each."""
_PHASES = (*_EACH, "optimizer", "encode", "decode")
_RINGS = {"full_precision": 1, "fp16": 1, "bf16": 1, "powersgd": 3, "post_local_sgd": 1}
"""Methods of all-reduces, and how many they take for a bucket."""
_CAP, _LEAST_CAP = 25.0, 2**-20
_FIRST_BUCKET = 2**20
"""Bytes, of DDP."""
_Phases = Mapping[str, float]
Network = tuple[tuple[str, str], ...]
"""What decides how long computing takes: parameters and their values."""


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
    """Of a run: its step but for `compute` and `other`, of which other runs know more, coordinates of the network, and
    workers of a process. rest: seconds of its own step without encoding and decoding, in which computing is; the
    optimizer's among them. None of rest where they are not those of a step that exchanges."""

    step: Step
    coordinates: float
    share: int
    rest: float | None = None
    optimizer: float = 0.0

    def other(self, compute: float) -> float:
        """Seconds that its step took besides computing, encoding and decoding."""
        if self.rest is None:
            return 0.0
        return max(0.0, self.rest - self.share * (compute - self.optimizer) - self.optimizer)


@dataclass(frozen=True)
class Predictions:
    """Of a comparison. groups: of its groups; None of one whose runs did not record what the model takes, and of a
    reduction that is not in it."""

    links: tuple[Link, ...]
    workers: tuple[int, ...]
    groups: tuple[Modelled | None, ...]


def predictions(uri: str, comparison: Comparison, links: Sequence[Link], workers: Sequence[int]) -> Predictions:
    """For each link and number of workers. `break_even` is with the latency of the first link."""

    def read(key: str) -> Mapping[str, History]:
        found: dict[str, History] = {}
        runs = [one for group in comparison.groups for one in group.finished]
        for experiment in dict.fromkeys(one.experiment for one in runs):
            ids = [one.run_id for one in runs if one.experiment == experiment]
            found |= read_histories(uri, experiment, ids, key)
        return found

    steps = modelled_steps([group.finished for group in comparison.groups], read)
    groups = tuple(None if one is None else _modelled(*one, links, workers) for one in steps)
    return Predictions(tuple(links), tuple(workers), groups)


def modelled_steps(
    groups: Sequence[Sequence[Run]], read: Callable[[str], Mapping[str, History]]
) -> list[tuple[Step, Step] | None]:
    """(a step, one of bf16 on the same network) of each group of finished runs, means over them; None where no run
    recorded what the model takes, or the reduction is not in it. read: histories of a metric, by run id.

    Computing is the same whatever the method: of all runs of equal data, network, batch and optimizer, that which took
    the shortest counts, since the backward phase of each includes what its own exchange made it wait. Of a run the
    medians over its measured steps count, without the first.

    What else an exchange took where it was recorded counts as `other`: the runs are taken to be of processes of one
    machine, between which there is no wire. Of runs over slow links the model says too much.
    """
    phases = _phases(read)
    runs = [one for group in groups for one in group]
    counted = {one.run_id: _counted(one, phases.get(one.run_id, {})) for one in runs}
    compute = _least(runs, phases, counted)
    return [_mean_step(group, counted, compute) for group in groups]


def compute_seconds(runs: Sequence[Run], read: Callable[[str], Mapping[str, History]]) -> Mapping[Network, float]:
    """Of a worker's step without an exchange, by network, as `modelled_steps` takes it; infinity where no run of it
    recorded its phases."""
    phases = _phases(read)
    return _least(runs, phases, {one.run_id: _counted(one, phases.get(one.run_id, {})) for one in runs})


def _least(
    runs: Sequence[Run], phases: Mapping[str, _Phases], counted: Mapping[str, _Counted | None]
) -> dict[Network, float]:
    found: dict[Network, float] = {}
    for one in runs:
        own = _compute(one, phases.get(one.run_id, {}), counted[one.run_id])
        found[network_of(one)] = min(own, found.get(network_of(one), math.inf))
    return found


def _mean_step(
    runs: Sequence[Run], counted: Mapping[str, _Counted | None], compute: Mapping[Network, float]
) -> tuple[Step, Step] | None:
    known = [(one, found, compute[network_of(one)]) for one in runs if (found := counted[one.run_id])]
    known = [each for each in known if math.isfinite(each[2])]
    if not known:
        return None
    steps, alone = [found.step for _, found, _ in known], statistics.fmean(seconds for _, _, seconds in known)
    means = {
        name: statistics.fmean(getattr(one, name) for one in steps)
        for name in ("payload", "mean", "encode", "decode", "messages")
    }
    means["other"] = statistics.fmean(found.other(seconds) for _, found, seconds in known)
    coordinates = statistics.fmean(found.coordinates for _, found, _ in known)
    plain = sixteen_bits(coordinates, alone, _buckets(coordinates, _megabytes(known[0][0])))
    return Step(steps[0].reduction, alone, **means), plain


def _modelled(step: Step, plain: Step, links: Sequence[Link], workers: Sequence[int]) -> Modelled:
    predicted = []
    for link in links:
        for count in workers:
            seconds = step.seconds(count, link)
            ratio = plain.seconds(count, link) / seconds if seconds > 0 else math.nan
            predicted.append(Prediction(link, count, seconds, ratio))
    limits = {count: break_even(step, plain, count, links[0].latency) for count in workers}
    return Modelled(step, tuple(predicted), limits)


def _phases(read: Callable[[str], Mapping[str, History]]) -> dict[str, dict[str, float]]:
    """By run id and phase, seconds."""
    found: dict[str, dict[str, float]] = {}
    for phase in _PHASES:
        for run_id, points in read(f"time/{phase}_seconds").items():
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
    held = 8 * handed / bits if bits > 0 else math.nan  # all coordinates of a process; an all-reduce takes their mean
    if reduction == "hierarchical" and math.isfinite(held):
        return _counted_by_hosts(run, phases, handed, held)
    if not math.isfinite(held) or not math.isfinite(sent) or reduction not in REDUCTIONS:
        return None

    def expected(share: int, processes: int) -> float:
        if run.method == "random_k":  # travels as a payload itself
            return handed / (share + 1 / processes)
        return _encoded_mean(run, held / share) / max(1, _whole(run, "exchange.every", 1))

    split = split_payload(reduction, workers, handed, sent, expected)
    if split is None or (reduction != "all_reduce" and not {"encode", "decode"} <= phases.keys()):
        return None
    share, payload, mean = split
    coordinates = held if reduction == "all_reduce" else held / share
    encode = decode = 0.0
    if reduction != "all_reduce":
        decoded = workers if reduction == "all_gather" else share + 1
        encode, decode = (_rate(run) * one for one in (phases["encode"] / share, phases["decode"] / decoded))
    messages = collectives(run, coordinates)
    kind = cast(Literal["all_gather", "scatter_reduce", "all_reduce"], reduction)
    step = Step(kind, 0.0, payload, mean, encode, decode, messages)
    return _Counted(step, coordinates, share, *_rest(run, phases, reduction))


def _counted_by_hosts(run: Run, phases: _Phases, handed: float, held: float) -> _Counted | None:
    """Of `hierarchical`: hosts take the place of workers in what is encoded, sent and decoded."""
    between, within = (run.metrics.get(f"wire/bytes_{part}_hosts", math.nan) for part in ("between", "within"))
    hosts = _whole(run, "exchange.hosts", 0) or None
    if not math.isfinite(between) or not math.isfinite(within) or not {"encode", "decode"} <= phases.keys():
        return None
    placed = split_hosts(_whole(run, "workers", 1), hosts, handed, between, within)
    if placed is None:
        return None
    coordinates = held / placed.sends
    encode, decode = (_rate(run) * one for one in (phases["encode"] / placed.sends, phases["decode"] / placed.hosts))
    step = Step("hierarchical", 0.0, placed.payload, 0.0, encode, decode, collectives(run, coordinates))
    return _Counted(step, coordinates, placed.share, *_rest(run, phases, "hierarchical"))


def _rest(run: Run, phases: _Phases, reduction: str) -> tuple[float | None, float]:
    """(seconds of a run's own step without encoding and decoding, the optimizer's among them). None of an all-reduce,
    which torch overlaps with the backward pass, of local steps, of which few exchange, and where they are not known."""
    optimizer = phases.get("optimizer", 0.0)
    if reduction == "all_reduce" or _whole(run, "exchange.every", 0) or not {"forward", "backward"} <= phases.keys():
        return None, optimizer
    own = sum(phases.get(phase, 0.0) for phase in _EACH) + optimizer
    return own - phases["encode"] - phases["decode"], optimizer


def _compute(run: Run, phases: _Phases, counted: _Counted | None) -> float:
    """Seconds of one worker's step, at most; infinity where they are not known."""
    share = counted.share if counted else 1 if _whole(run, "workers", 1) == 1 else 0
    if not share or not {"forward", "backward"} <= phases.keys():
        return math.inf
    optimizers = share if _whole(run, "exchange.every", 0) else 1
    return sum(phases.get(phase, 0.0) for phase in _EACH) / share + phases.get("optimizer", 0.0) / optimizers


def _encoded_mean(run: Run, coordinates: float) -> float:
    """Bytes of scatter_reduce's second encoding, about."""
    size = max(1, _whole(run, "quantizer.bucket_size", 8192))
    return coordinates * _whole(run, "exchange.gather_bits", 8) / 8 + 4 * math.ceil(coordinates / size)


def collectives(run: Run, coordinates: float) -> float:
    """Collectives a step, about: of DDP's buckets; with `exchange.every` those of all fragments, over H steps."""
    cap, every, each = _megabytes(run), _whole(run, "exchange.every", 0), _RINGS.get(run.method, 1)
    if every:
        buckets = math.ceil(4 * coordinates / (cap * 2**20))
        return each * max(_whole(run, "exchange.fragments", 1), buckets) / every
    return each if run.method == "powersgd" else _buckets(coordinates, cap)


def _buckets(coordinates: float, cap: float) -> int:
    """Of DDP, whose first one is smaller. cap: MiB."""
    most = cap * 2**20
    first = min(most, _FIRST_BUCKET)
    return 1 + max(0, math.ceil((4 * coordinates - first) / most))


def _megabytes(run: Run) -> float:
    try:
        found = float(run.params.get("exchange.bucket_cap_mb", _CAP))
    except ValueError:  # of a run that is not lqray's own
        return _CAP
    return found if found >= _LEAST_CAP else _CAP


def _rate(run: Run) -> float:
    """Exchanges a step."""
    every = _whole(run, "exchange.every", 0)
    return _whole(run, "exchange.fragments", 1) / every if every else 1.0


def _whole(run: Run, key: str, otherwise: int) -> int:
    return whole_number(run.params.get(key, str(otherwise)), otherwise)


def network_of(run: Run) -> Network:
    """What decides how long computing takes."""
    chosen = ("schedule.batch_size", "schedule.accumulate", "optimizer.name")
    items = sorted(run.params.items())
    return tuple((key, value) for key, value in items if key.startswith(("data.", "model.")) or key in chosen)
