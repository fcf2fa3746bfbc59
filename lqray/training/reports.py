"""What a run says of itself, and where its processes meet: plain data. Imports no torch, since whoever hears of a run
and does not train has seconds to lose by it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from lqray.training.levels import LevelHistory


class StoppedError(Exception):
    """The run was asked to stop, and did after `iteration` steps, with a checkpoint where there is a folder for it."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f"stopped after {iteration} iterations")
        self.iteration = iteration


@dataclass(frozen=True)
class Report:
    """Metrics of a trial after `iteration` optimizer steps of `iterations`.

    evaluated: they include an evaluation; every rank makes it, and sends the report, at the same iterations. final: the
    last report of the run, with its summary. snapshot: of the final report of rank 0 of a quantized run, its levels and
    the density of its last gradient (`lqray.training.telemetry.density_snapshot`). examples: of the training and the
    test set. levels: of a quantized run, all that were measured so far, which are also among the metrics; the run goes
    on with them. lost: metrics, of this report or earlier ones, whose latest value is NaN. remarks: what a user should
    know of the checkpoints that were found.
    """

    iteration: int
    iterations: int
    metrics: dict[str, float]
    evaluated: bool = False
    final: bool = False
    snapshot: dict[str, Any] | None = None
    examples: tuple[int, int] | None = None
    levels: LevelHistory | None = None
    lost: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Of a process among `world` of this machine, which meet at a port that rank 0 opens."""

    rank: int
    world: int
    port: int


def interface_variables(network_interface: str | None) -> dict[str, str]:
    """Environment in which process groups of both backends use that network interface; {} leaves the choice."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return dict.fromkeys(names, network_interface) if network_interface else {}


def loopback_variables() -> dict[str, str]:
    """Environment in which gloo's groups of one machine's processes listen on its loopback interface alone; {} where
    somebody has chosen an interface, or none is called so."""
    loopback = "lo"
    if "GLOO_SOCKET_IFNAME" in os.environ or loopback not in {name for _, name in socket.if_nameindex()}:
        return {}
    return {"GLOO_SOCKET_IFNAME": loopback}
