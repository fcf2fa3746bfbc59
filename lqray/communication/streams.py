"""Every rule about streams, the memory they read, and the futures that stand for work on them.

On a GPU the host only queues work, on streams that run beside each other. So:

1. A stream waits for another before it reads what that one writes: `Side`, and futures that know their device.
2. A stream that reads memory which another one allocated says so (`Side.prepare`, `used_here`): else the allocator
   hands it out again as soon as the host lets go of the tensor, while it is still being read.
3. A future knows the device of its tensors (`future`): who waits for one that does not, waits for the host alone.
   Those of `torch.futures.collect_all` and of gloo's collectives do not (`after_all`, `arrival`).
4. The thread of the backward pass does not wait for a GPU: what must be read is copied and looked at later
   (`HostCopy`), or waited for in a thread of its own (`lqray.communication.wire.stage`). Only steps that are measured
   or sampled do.

On a CPU a step has been done when its call returns, and all of this is nothing. No other file of this room speaks of
CUDA, its streams or its events; tests put another accelerator in its place (`accelerator`, tests/testing/accelerator).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

T = TypeVar("T")


class Event(Protocol):
    """A point of a stream."""

    def record(self, stream: Any) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end_event: Any, /) -> float: ...


class Stream(Protocol):
    """Work that a device does one after the other."""

    def wait_stream(self, stream: Any) -> None: ...
    def synchronize(self) -> None: ...


class Accelerator(Protocol):
    """What the rules need of `torch.cuda`."""

    def serves(self, device: torch.device) -> bool: ...
    def device(self) -> torch.device: ...
    def stream(self, device: torch.device) -> Stream: ...
    def current_stream(self, device: torch.device) -> Stream: ...
    def using(self, stream: Any) -> AbstractContextManager[Any]: ...
    def event(self, timed: bool) -> Event: ...
    def record(self, tensor: Tensor, stream: Any) -> None: ...
    def future(self, device: torch.device) -> Future[Any]: ...
    def host_memory(self, like: Tensor) -> Tensor: ...
    def synchronize(self, device: torch.device) -> None: ...


class _Cuda:
    def serves(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def device(self) -> torch.device:
        return torch.device("cuda")

    def stream(self, device: torch.device) -> Stream:
        return torch.cuda.Stream(device)

    def current_stream(self, device: torch.device) -> Stream:
        return torch.cuda.current_stream(device)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def event(self, timed: bool) -> Event:
        return torch.cuda.Event(enable_timing=timed)

    def record(self, tensor: Tensor, stream: Any) -> None:
        tensor.record_stream(stream)

    def future(self, device: torch.device) -> Future[Any]:
        return Future(devices=[device])

    def host_memory(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)


accelerator: Accelerator = _Cuda()


def queues(device: torch.device) -> bool:
    """Whether work on a device is only queued when its call returns."""
    return accelerator.serves(device)


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Where collectives of a group want their tensors."""
    return accelerator.device() if dist.get_backend(group) == "nccl" else torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Let the host wait until a device has done everything."""
    if queues(device):
        accelerator.synchronize(device)


def used_here(*tensors: Tensor) -> None:
    """The current stream reads or writes tensors that another stream may have allocated."""
    for tensor in tensors:
        if queues(tensor.device):
            accelerator.record(tensor, accelerator.current_stream(tensor.device))


def future(device: torch.device) -> Future[Any]:
    """A future whose result is on a device: who waits for it waits for the stream in which the result was set."""
    return accelerator.future(device) if queues(device) else Future()


def complete(done: Future[T], work: Callable[[], T]) -> None:
    """Do `work`; its result, or its error, whatever it is, becomes the future's, since somebody waits for that."""
    try:
        done.set_result(work())
    except BaseException as error:
        seen = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        done.set_exception(seen)  # type: ignore[arg-type]  # so torch declares it


def seen_by_ddp(done: Future[T]) -> Future[T]:
    """The same, of which DDP sees an error, too: that of `complete` is for Python's eyes alone."""
    return done.then(lambda finished: finished.value())


def after_all(parts: Sequence[Future[Any]], combine: Callable[..., T], device: torch.device) -> Future[T]:
    """combine(value of each part) once all have ended, on a GPU after all of them on the device."""
    whole: Future[T] = future(device)
    left = itertools.count(len(parts) - 1, -1)

    def ended(_: Future[Any]) -> None:
        if next(left) == 0:  # wait: the stream of a callback waits for the future that it belongs to only
            complete(whole, lambda: combine(*[part.wait() for part in parts]))

    for part in parts:
        part.add_done_callback(ended)
    return seen_by_ddp(whole)


def arrival(works: Sequence[dist.Work], group: dist.ProcessGroup, device: torch.device) -> Future[Any]:
    """When collectives of `group`, just started on tensors of a device, have all ended; the value says nothing."""
    futures: list[Future[Any]] = [work.get_future() for work in works]
    if not queues(device):
        return futures[0] if len(futures) == 1 else torch.futures.collect_all(futures)
    if dist.get_backend(group) != "gloo":
        return futures[0] if len(futures) == 1 else after_all(futures, lambda *values: None, device)

    # Gloo's futures end before their results are back on the GPU: it copies them on streams that `Work` alone knows.
    started_on = accelerator.current_stream(device)
    copied: Future[None] = future(device)

    def wait_for_copies(ended: Future[Any]) -> None:
        def wait() -> None:
            ended.value()  # raises what the collectives did
            for work in works:
                work.synchronize()

        with accelerator.using(started_on):
            complete(copied, wait)

    torch.futures.collect_all(futures).add_done_callback(wait_for_copies)
    return seen_by_ddp(copied)


class Side:
    """A stream beside the current one, made when it is first needed. On a CPU there is none."""

    def __init__(self) -> None:
        self._stream: Stream | None = None

    def prepare(self, device: torch.device, tensors: Iterable[Tensor] = ()) -> None:
        """What is queued here from now on comes after all that is queued on the current stream, and may use `tensors`,
        which other streams have allocated."""
        if not queues(device):
            return
        self._stream = self._stream or accelerator.stream(device)
        self._stream.wait_stream(accelerator.current_stream(device))
        with accelerator.using(self._stream):
            used_here(*tensors)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What runs within is queued here, also by another thread than the one that prepared it."""
        if self._stream is None:
            yield
            return
        with accelerator.using(self._stream):
            yield

    def synchronize(self) -> None:
        """Let the host wait for all that was queued here."""
        if self._stream is not None:
            self._stream.synchronize()


class HostCopy:
    """A tensor of a GPU on its way to the host, which does not wait for it. values: to be read once it has arrived."""

    def __init__(self, tensor: Tensor) -> None:
        self.values = accelerator.host_memory(tensor)
        self.values.copy_(tensor, non_blocking=True)
        self._copied = accelerator.event(timed=False)
        self._copied.record(accelerator.current_stream(tensor.device))

    def has_arrived(self) -> bool:
        """Whether `values` are there."""
        return self._copied.query()

    def wait(self) -> None:
        """Let the host wait until they are."""
        self._copied.synchronize()


class Interval:
    """From where the current stream of a GPU was when this was made to where it was at `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun, self._ended = accelerator.event(timed=True), accelerator.event(timed=True)
        self._begun.record(accelerator.current_stream(device))

    def stop(self) -> None:
        """Everything that belongs to it has been queued."""
        self._ended.record(accelerator.current_stream(self._device))

    def seconds(self) -> float:
        """How long the GPU took; the host waits for it."""
        self._ended.synchronize()
        return self._begun.elapsed_time(self._ended) / 1e3
