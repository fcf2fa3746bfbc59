"""Steps of an exchange that must wait for each other, done beside the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.futures import Future

T = TypeVar("T")


class Stage:
    """Does one thing after the other, in the order of `submit`, which must be the same on all ranks.

    On the CPU in a thread and with a process group of its own (`group`), so that its collectives and those that the
    main thread starts need no common order. On a GPU everything is queued at once, on a stream of its own.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Collective over the ranks of `group`."""
        ranks = dist.get_process_group_ranks(group)
        own = dist.new_group(ranks, backend=dist.get_backend(group), use_local_synchronization=True)
        assert own is not None
        self.group: dist.ProcessGroup = own
        self._thread = ThreadPoolExecutor(1, "lqray-exchange")
        self._stream: torch.cuda.Stream | None = None

    def submit(self, device: torch.device, work: Callable[[], T]) -> Future[T]:
        """Do `work` on `device` after all that was submitted before. An error of it is the future's."""
        done: Future[T] = Future(devices=[device] if device.type == "cuda" else None)
        if device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._stream):
                done.set_result(work())
            return done

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                # set_exception alone is for Python's eyes; `then` below makes it one for DDP's.
                done.set_exception(error)  # type: ignore[arg-type]  # so torch declares it

        self._thread.submit(run)
        return done.then(lambda finished: finished.value())

    def close(self) -> None:
        """End the thread once it is idle."""
        self._thread.shutdown(wait=False)
