"""What exchanging one step's gradients costs: bytes, counted where a collective takes them, and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

import torch
from torch import nn

from lqray.communication import streams

Phase = Literal["encode", "exchange", "decode"]


@dataclass
class Volume:
    """Of one process and one step.

    coordinates: of the gradients that its workers exchange. payload_bytes: handed to collectives. bytes_sent,
    bytes_received: what the collective's algorithm then moves between processes (all_gather over a ring: what each
    process holds to every other). bytes_between_hosts: where hosts send for their workers, what leaves the host of the
    bytes sent, and payload_bytes then is the host's whole payload; else None.
    """

    coordinates: int = 0
    payload_bytes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_between_hosts: int | None = None
    _seconds: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    _intervals: list[tuple[str, streams.Interval]] = field(default_factory=list, repr=False, compare=False)

    @property
    def bits_per_coordinate(self) -> float:
        """Bits of the payload for each coordinate of the gradient; NaN without any."""
        return 8 * self.payload_bytes / self.coordinates if self.coordinates else float("nan")

    @property
    def ratio_to_float32(self) -> float:
        """How many times fewer bytes the payload has than the gradient in float32; NaN where nothing is sent."""
        return 4 * self.coordinates / self.payload_bytes if self.payload_bytes else float("nan")

    def moved(self, sent: int, received: int, between: int | None = None) -> None:
        """Count bytes that a collective moves from and to this process. between: of those sent, how many leave the
        host, where that is counted; all of them without."""
        self.bytes_sent += sent
        self.bytes_received += received
        if self.bytes_between_hosts is not None:
            self.bytes_between_hosts += sent if between is None else between

    def all_reduced(self, payload: int, world: int, beside: int = 1) -> None:
        """Count a ring all-reduce of `payload` bytes over `world` processes. beside: how many neighbours share a host:
        of these one sends to the next host."""
        self.payload_bytes += payload
        moved = 2 * (world - 1) * payload // world
        self.moved(moved, moved, moved // beside)

    def numbers(self) -> list[int]:
        """What was counted, in the order of fields, without bytes that are not counted apart."""
        counted = [self.coordinates, self.payload_bytes, self.bytes_sent, self.bytes_received]
        return counted if self.bytes_between_hosts is None else [*counted, self.bytes_between_hosts]

    def __add__(self, other: Volume) -> Volume:
        """Both together, without their seconds."""
        return Volume.of([sum(pair) for pair in zip_longest(self.numbers(), other.numbers(), fillvalue=0)])

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Volume:
        """The inverse of `numbers`."""
        coordinates, payload_bytes, sent, received, *between = numbers
        return cls(coordinates, payload_bytes, sent, received, between[0] if between else None)

    def add_seconds(self, phase: Phase, seconds: float) -> None:
        """Count wall time of a phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @contextmanager
    def timed(self, phase: Phase, device: torch.device) -> Iterator[None]:
        """Count the time of what runs within: wall time, on a GPU that of the current stream."""
        if streams.queues(device):
            interval = streams.Interval(device)
            yield
            interval.stop()
            self._intervals.append((phase, interval))
            return
        started = time.perf_counter()
        yield
        self.add_seconds(phase, time.perf_counter() - started)

    def seconds(self, phase: Phase) -> float:
        """Seconds of a phase so far. DDP buckets overlap: phases add up to more than the step. Waits for a GPU."""
        return self._seconds.get(phase, 0.0) + sum(
            interval.seconds() for name, interval in self._intervals if name == phase
        )


def full_precision_volume(module: nn.Module, processes: int) -> Volume:
    """What torch DDP's all-reduce of this module's gradients costs in bytes, every gradient in its parameter's dtype.

    A ring all-reduce sends 2 (processes - 1) / processes of the buffer; 0 processes: a module that exchanges nothing.
    Seconds are not known: DDP overlaps and hides them.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    volume = Volume(sum(parameter.numel() for parameter in trained))
    if processes:
        volume.all_reduced(sum(parameter.numel() * parameter.element_size() for parameter in trained), processes)
    return volume
