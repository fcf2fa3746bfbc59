"""Streams, events and memory of the fake accelerator, and who runs ahead of whom."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ORDERS = ("demand", "oldest first", "newest first", 1, 2, 3)
"""In which order streams that could run do so, once the host waits for something. demand: nothing runs that the host
does not wait for. oldest, newest first: a stream runs as far as it can before those made after, before it do. A number:
by chance, in bursts, with this seed."""
_POISON = 255  # bytes: NaN in floating point


@dataclass(frozen=True)
class Point:
    """Reached once `stream` has done its first `position` pieces of work."""

    stream: Stream
    position: int

    @property
    def reached(self) -> bool:
        return self.stream.done >= self.position


class Stream:
    """A queue of work: functions, and points of other streams to be waited for."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.queue: deque[Callable[[], object] | Point] = deque()
        self.done = 0
        with machine.lock:
            machine.streams.append(self)

    @property
    def end(self) -> Point:
        """Where everything that is queued by now has been done."""
        with self._machine.lock:
            return Point(self, self.done + len(self.queue))

    def push(self, work: Callable[[], object] | Point) -> None:
        with self._machine.lock:
            self.queue.append(work)

    def wait(self, point: Point) -> None:
        self.push(point)

    def wait_stream(self, stream: Stream) -> None:
        self.push(stream.end)

    def synchronize(self) -> None:
        self._machine.reach(self.end)


class Event:
    """As `torch.cuda.Event`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._point: Point | None = None

    def record(self, stream: Stream) -> None:
        self._point = stream.end

    def query(self) -> bool:
        return self._point is None or self._point.reached

    def synchronize(self) -> None:
        if self._point:
            self._machine.reach(self._point)

    def elapsed_time(self, end_event: Event) -> float:
        if not (self.query() and end_event.query()):
            raise RuntimeError("both events must have been reached")
        return 1.0


@dataclass
class Block:
    """Memory that tensors look at. users: other streams than its own that were recorded."""

    memory: Tensor
    stream: Stream
    users: set[Stream] = field(default_factory=set)

    def __hash__(self) -> int:
        return id(self)


class Machine:
    """Does what is queued when the host waits, and not before."""

    def __init__(self, order: str | int) -> None:
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self.waits: list[int] = []
        """The thread of each time that the host had to wait."""
        self._order = order
        self._chance = random.Random(order)
        self._burst: Stream | None = None
        self._freed: list[tuple[list[Point], Tensor]] = []

    def reach(self, point: Point) -> None:
        """Let the host wait. Raises RuntimeError where streams wait for each other in a ring."""
        with self.lock:
            if not point.reached:
                self.waits.append(threading.get_ident())
            while not point.reached:
                stream = self._needed_by(point) if self._order == "demand" else self._chosen()
                self._do_next(stream)

    def free(self, block: Block) -> None:
        """The host has let go of memory: it may be overwritten once the streams that are known to use it have come to
        the end of what they have been given by now."""
        with self.lock:
            self._freed.append(([stream.end for stream in {block.stream, *block.users}], block.memory))
            self._reuse()

    def _do_next(self, stream: Stream) -> None:
        work = stream.queue[0]
        if not isinstance(work, Point):
            work()
        del work
        stream.queue.popleft()  # not before: `Stream.end` counts what is being done, too
        stream.done += 1
        self._reuse()

    def _reuse(self) -> None:
        for points, memory in [each for each in self._freed if all(point.reached for point in each[0])]:
            memory.fill_(_POISON)
            self._freed = [each for each in self._freed if each[1] is not memory]
            del points

    def _needed_by(self, point: Point) -> Stream:
        seen = [point.stream]
        while isinstance(work := seen[-1].queue[0], Point) and not work.reached:
            if work.stream in seen:
                raise RuntimeError("streams wait for each other")
            seen.append(work.stream)
        return seen[-1]

    def _chosen(self) -> Stream:
        able = [stream for stream in self.streams if stream.queue and self._is_able(stream)]
        if not able:
            raise RuntimeError("streams wait for each other")
        if self._order == "oldest first":
            return able[0]
        if self._order == "newest first":
            return able[-1]
        if self._burst not in able or self._chance.random() < 0.1:
            self._burst = self._chance.choice(able)
        return self._burst

    def _is_able(self, stream: Stream) -> bool:
        work: Any = stream.queue[0]
        return not isinstance(work, Point) or work.reached


def poisoned(memory: Tensor) -> Tensor:
    """Memory that nothing has been written to."""
    raw = torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())
    raw.fill_(_POISON)
    return raw
