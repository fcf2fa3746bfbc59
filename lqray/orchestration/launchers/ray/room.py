"""How many trials the machines of a cluster hold at a time, while machines come and go. Without Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lqray.experiment.schema import Resources
from lqray.orchestration.launchers.placement import PlacementError, in_words, per_process, ranks_per_gpu

_STEADY = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """One that is alive. node: Ray's id of it. name: its address. resources: its total, by kind. drained: it takes
    nothing new and is gone soon. gone_at: when, in Unix seconds; 0: that is not known. needed: what it is to the
    sweep, where that cannot go on without it."""

    node: str
    name: str
    resources: Mapping[str, float]
    drained: bool = False
    gone_at: float = 0.0
    needed: str = ""


def places(there: Mapping[str, float], resources: Resources) -> int:
    """Processes of trials that fit on a machine. A share of a GPU is of one GPU: with 0.4, two fit on it."""
    need = per_process(resources)
    fitting = min(int(there.get(kind, 0.0) / amount + 1e-9) for kind, amount in need.items())
    share = resources.gpus_per_process
    return min(fitting, int(there.get("GPU", 0.0)) * ranks_per_gpu(share)) if 0 < share < 1 else fitting


class Room:
    """`trials`: how many may run at a time. More would wait for each other: a trial that has begun keeps its turn while
    its workers wait for places.

    processes: of the largest trial, which may be on several machines. limit: what an autoscaler may make of the
    cluster, by kind: trials begin for so much, and wait for machines.
    """

    def __init__(self, processes: int, resources: Resources, limit: Mapping[str, float] | None = None) -> None:
        self._processes, self._resources, self._limit = processes, resources, limit or {}
        self.trials = 0
        self._said: int | None = None
        self._seen = (-1, 0)

    def check(self, machines: Sequence[Machine]) -> None:
        """Raises PlacementError where not one trial fits, also when no machine leaves."""
        if self._fitting([one.resources for one in machines]):
            return
        found = sum(places(one.resources, self._resources) for one in machines)
        raise PlacementError(
            f"a trial is {self._need()} each, a process is on one machine, and the cluster's {len(machines)} have room "
            f"for {found}; lower resources.processes, or what a process takes, or add machines"
        )

    def see(self, machines: Sequence[Machine], more: bool = True) -> None:
        """These are there now. more: trials are waiting. A lasting change of `trials` is said once, by a line."""
        self.trials = self._fitting([one.resources for one in machines if not one.drained])
        value, times = self._seen
        self._seen = (self.trials, times + 1 if value == self.trials else 1)
        if self._said is None and self.trials:
            self._said = self.trials
        elif more and self.trials != self._said and self._seen[1] >= _STEADY:
            self._say(self._said)
            self._said = self.trials

    def _say(self, before: int | None) -> None:
        if not self.trials:
            _log.warning("the cluster has no room for a trial now (%s): trials wait for machines", self._need())
        elif not before:
            _log.warning("there is room for trials again, %d at a time: the sweep goes on", self.trials)
        else:
            _log.warning("the cluster has changed: trials at a time: %d, before %d", self.trials, before)

    def _fitting(self, machines: Iterable[Mapping[str, float]]) -> int:
        machines = list(machines)
        fitting = sum(places(one, self._resources) for one in machines)
        if self._limit:
            kinds = {kind for one in machines for kind in one} | self._limit.keys()
            total = {kind: sum(one.get(kind, 0.0) for one in machines) for kind in kinds}
            grown = {kind: max(amount, self._limit.get(kind, 0.0)) for kind, amount in total.items()}
            fitting = max(fitting, places(grown, self._resources))
        most = self._resources.concurrent_trials
        trials = fitting // self._processes
        return trials if most == "auto" else min(trials, most)

    def _need(self) -> str:
        count = "1 process" if self._processes == 1 else f"{self._processes} processes"
        return f"{count} of {in_words(per_process(self._resources))}"
