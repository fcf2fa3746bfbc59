"""Steps of workers that train alone, and now and then exchange how far they came (DiLoCo, Douillard et al. 2023;
Streaming DiLoCo, Douillard et al. 2025). docs/guide/local-steps.md has the update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lqray.communication import Volume, check_replicas
from lqray.training.anchors import write_anchors
from lqray.training.dataset import Batch
from lqray.training.steps.apart import StepsApart
from lqray.training.steps.fragments import Timetable, fragments_of
from lqray.training.steps.outer import build_outer
from lqray.training.steps.sender import Sender, Sent, Tensors
from lqray.training.steps.setting import Progress, Setting
from lqray.training.steps.statistics import average_buffers
from lqray.training.steps.worker import LocalWorker
from lqray.training.telemetry import quantizer_metrics


@dataclass
class _Flight:
    """An exchange whose result is not applied yet. due: steps after which it is."""

    due: int
    fragments: list[int]
    sent: Sent


class LocalSteps(StepsApart):
    """See the module; `lqray.training.steps.setting.Steps` says what its methods do. Exchanges are numbered from 0:
    what options of exchanges and quantizers say of iterations is of these numbers."""

    def __init__(self, setting: Setting, progress: Progress) -> None:
        wires, options = setting.wires, setting.trial.exchange
        assert options.every is not None
        check_replicas(wires.network, wires.group, setting.device)
        super().__init__(setting, progress, [LocalWorker(setting, number) for number in wires.workers])
        self._options, self._anchors = options, wires.anchors
        self._outer = build_outer(options.outer, self._anchors)
        self._fragments = fragments_of(wires.network, options.fragments)
        self._timetable = Timetable(options.every, options.fragments, setting.iterations)
        names = [fragment.names for fragment in self._fragments]
        self._sender = Sender(wires, self._anchors, names, options.bucket_cap_mb)
        exact = wires.exchange is None and wires.baseline is None
        self._takes_the_mean = exact and options.outer.takes_the_mean
        self._flights: list[_Flight] = []
        self._travelled: Tensor | None = None

    def take(self, iteration: int, feed: Iterator[Batch], lr: float, measured: bool) -> Tensor:
        """See `Steps.take`."""
        self._travelled = None
        return super().take(iteration, feed, lr, measured)

    def telemetry(self, measured: bool) -> dict[str, float]:
        """See `Steps.telemetry`. An exchange is measured where a measurement was due since the one before."""
        metrics, exchange = super().telemetry(measured), self._wires.exchange
        if self._travelled is not None:
            norms, cosines = self._sum_of(self._travelled.tolist())
            workers = self._setting.trial.workers
            metrics |= {"outer/norm": norms / workers, "outer/cosine": cosines / workers}
            if exchange:
                metrics |= quantizer_metrics(exchange, self._wires.group, self._setting.device)
        return metrics

    def settle(self) -> None:
        """See `Steps.settle`: buffers are alike from the last exchange on."""

    def rehearse(self) -> None:
        """See `Steps.rehearse`: nothing."""

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Steps.state_dict`. Waits for what is under way, and leaves it under way."""
        flights = [
            {"due": flight.due, "fragments": flight.fragments, "means": flight.sent.means()} for flight in self._flights
        ]
        anchors = {name: one.detach() for name, one in self._anchors.items()}
        shared = {"anchors": anchors, "outer": self._outer.state_dict(), "flights": flights}
        local = {
            "workers": [worker.state_dict() for worker in self._workers],
            "traffic": self._traffic.state_dict(),
            "volumes": [flight.sent.volume.numbers() for flight in self._flights],
        }
        return shared, {**self._wires.state_dict(), "local": local}

    @torch.no_grad()
    def load_state_dict(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """See `Steps.load_state_dict`."""
        for name, one in self._anchors.items():
            one.copy_(shared["anchors"][name])
        self._outer.load_state_dict(shared["outer"])
        for worker, state in zip(self._workers, own["local"]["workers"], strict=True):
            worker.load_state_dict(state)
        self._traffic.load_state_dict(own["local"]["traffic"])
        self._wires.load_state_dict({key: value for key, value in own.items() if key != "local"})
        self._flights = [
            _Flight(flight["due"], list(flight["fragments"]), Sent.arrived(flight["means"], Volume.of(numbers)))
            for flight, numbers in zip(shared["flights"], own["local"]["volumes"], strict=True)
        ]

    def regrouped(self, owns: Sequence[Mapping[str, Any]], done: int) -> dict[str, Any]:
        """See `Steps.regrouped`. What was moved so far is that of the process which had the first worker here."""
        exchanged = [{key: value for key, value in own.items() if key != "local"} for own in owns]
        wires, local = self._wires.regrouped(exchanged, self._timetable.exchanges(done)), [own["local"] for own in owns]
        grouping = self._wires.by_workers(len(owns))
        workers = grouping.of_senders([dict(enumerate(each["workers"])) for each in local])
        return {**wires, "local": {**grouping.first(local), "workers": [workers[one] for one in sorted(workers)]}}

    def _exchange(self, done: int) -> None:
        """Apply what is due after so many steps, and start what is."""
        last = done == self._setting.iterations
        for flight in [flight for flight in self._flights if last or flight.due == done]:
            self._land(flight, done)
        if fragments := self._timetable.due(done):
            flight = self._start(done, fragments, last)
            if last or not self._options.overlap:
                self._land(flight, done)

    def _start(self, done: int, fragments: list[int], last: bool) -> _Flight:
        number, since = self._timetable.exchanges(done - 1), self._timetable.last(done - 1)
        every = self._setting.trial.telemetry.every
        measure = every > 0 and (done - 1) // every > (since - 1) // every
        names = [name for fragment in fragments for name in self._fragments[fragment].names]
        moved = [self._moved(worker, names) for worker in self._workers]
        tensors = [worker.parameters(names) for worker in self._workers] if self._takes_the_mean else moved
        sent = self._sender.send(number, fragments, tensors, measure, last and self._wires.group.rank() == 0)
        flight = _Flight(done + self._options.overlap, fragments, sent)
        self._flights.append(flight)
        exchange = self._wires.exchange
        if exchange and exchange.levels_due(number):
            for each in self._flights:  # is decoded with the levels that it was encoded with
                each.sent.means()
            exchange.update_levels()
        if measure:
            self._travelled = _travelled(moved, self._as_difference(sent.means()))
        self._count_skipped()
        return flight

    @torch.no_grad()
    def _moved(self, worker: LocalWorker, names: list[str]) -> Tensors:
        """How far a worker came from the anchors, in the direction of a gradient."""
        return {name: self._anchors[name].detach() - own for name, own in worker.parameters(names).items()}

    def _as_difference(self, means: Tensors) -> Tensors:
        if not self._takes_the_mean:
            return means
        return {name: self._anchors[name].detach() - mean for name, mean in means.items()}

    def _land(self, flight: _Flight, done: int) -> None:
        """Step on from the anchors, and have the workers go on from there."""
        self._flights.remove(flight)
        means = flight.sent.means()
        names = [name for fragment in flight.fragments for name in self._fragments[fragment].names]
        self._check_finite("the exchanged difference", means, done)
        if self._takes_the_mean:
            with torch.no_grad():
                for name, mean in means.items():
                    self._anchors[name].copy_(mean)
        else:
            self._outer.zero_grad()
            for name, mean in means.items():
                self._anchors[name].grad = mean
            self._outer.step()
            self._outer.zero_grad()
        write_anchors(self._anchors, names, self._wires.network)
        for worker in self._workers:
            worker.take_over(self._anchors, names, self._options.mixing)
        buffers = [name for fragment in flight.fragments for name in self._fragments[fragment].buffers]
        networks = [worker.network for worker in self._workers]
        average_buffers(buffers, networks, self._wires.network, self._wires.group)
        exchanged = sum(mean.numel() for mean in means.values())
        self._traffic.add(flight.sent.volume, exchanged, silent=self._setting.trial.quantizer.method == "sgd")


def _travelled(moved: list[Tensors], mean: Tensors) -> Tensor:
    """float64 (2,): sums over the workers here of the norm of how far each came, and of its cosine with the mean."""

    def dot(one: Tensors, other: Tensors) -> Tensor:
        return torch.stack([(one[name].double() * other[name].double()).sum() for name in one]).sum()

    length = dot(mean, mean).sqrt()
    rows = []
    for each in moved:
        norm = dot(each, each).sqrt()
        rows.append(torch.stack([norm, dot(each, mean) / (norm * length).clamp(min=1e-300)]))
    return torch.stack(rows).sum(dim=0)
