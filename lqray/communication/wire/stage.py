"""Steps of an exchange that must wait for each other, done beside the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication import streams
from lqray.communication.wire.groups import end, twin_of

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that `close` waits for a step under way; it then ends by itself
_CLOSED = "this exchange is closed; make another one to go on"


class Stage:
    """Does one thing after the other, in the order of `submit`, which must be the same on all ranks.

    In a thread and with a process group of its own (`group`), so that its collectives and those that the main thread
    starts need no common order. On a GPU on a stream of its own, and without the thread: everything is queued at once,
    unless steps wait for the GPU (`host_waits`), which the thread of the backward pass must not.
    """

    def __init__(self, group: dist.ProcessGroup, host_waits: bool = False) -> None:
        """Collective over the ranks of `group`."""
        self._group: dist.ProcessGroup | None = twin_of(group)
        self._thread = ThreadPoolExecutor(1, "lqray-exchange")
        self._host_waits = host_waits
        self._side = streams.Side()
        self._closed = False

    @property
    def group(self) -> dist.ProcessGroup:
        """Of the same ranks as the group it was made for. Raises RuntimeError once it is gone."""
        if self._group is None:
            raise RuntimeError(_CLOSED)
        return self._group

    def submit(self, device: torch.device, work: Callable[[], T], uses: Iterable[Tensor] = ()) -> Future[T]:
        """Do `work` on `device` after all that was submitted before. An error of it is the future's. uses: every
        tensor on the device that `work` reads and has not made itself. Raises RuntimeError once closed."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        done: Future[T] = streams.future(device)
        self._side.prepare(device, uses)

        def run() -> None:
            with self._side.entered():
                streams.complete(done, work)

        if streams.queues(device) and not self._host_waits:
            run()
        else:
            self._thread.submit(run)
        return streams.seen_by_ddp(done)

    def close(self) -> None:
        """End the thread and the process group with its threads and connections. What was submitted is done first; a
        step that hangs, because another rank is gone, ends both when it ends."""
        if self._closed:
            return
        self._closed = True
        ended = self._thread.submit(self._leave)
        self._thread.shutdown(wait=False)
        try:
            ended.result(_PATIENCE)
        except TimeoutError:
            return
        self._thread.shutdown(wait=True)

    def _leave(self) -> None:
        """In the stage's own thread: the last reference to a group must never go in one of the group's threads, which
        would then wait for itself."""
        self._side.synchronize()  # a group is not asked to end while a GPU is at its collectives
        group, self._group = self._group, None
        if group is not None:
            end(group)
