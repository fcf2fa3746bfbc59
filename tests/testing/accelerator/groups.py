"""A process group whose other ranks send what this one does: one rank of several, in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _world
from torch.futures import Future

from tests.testing.accelerator.device import DeviceTensor, FakeAccelerator
from tests.testing.accelerator.futures import FakeFuture


class EchoGroup(dist.ProcessGroup):
    """Rank 0 of `world`. On a CPU, without an accelerator, collectives are done at once. On an accelerator they are
    queued on a stream of the group, as NCCL's are; with backend "gloo", as with gloo, only the `Work` of a collective
    waits for that stream, and its future does not.

    spoil: changes the rows (world, bytes) that all ranks are said to have gathered.
    """

    living: ClassVar[list[EchoGroup]] = []

    def __init__(self, world: int, accelerator: FakeAccelerator | None = None, backend: str = "gloo") -> None:
        super().__init__(0, world)
        self._accelerator, self._backend = accelerator, backend
        self._stream = accelerator.stream() if accelerator else None
        self.spoil: Callable[[Tensor], object] = lambda rows: None
        _world.pg_map[self] = (backend, None)
        EchoGroup.living.append(self)

    def twin(self, world: int | None = None) -> EchoGroup:
        """Another group of these ranks, or of so many of them."""
        made = EchoGroup(world or self.size(), self._accelerator, self._backend)
        made.spoil = self.spoil
        return made

    def destroy(self) -> None:
        """Raises RuntimeError where a device is still at its collectives."""
        if self._stream and self._stream.queue:
            raise RuntimeError("a group was destroyed while a device was at its collectives")
        self.forget()

    def forget(self) -> None:
        """torch knows nothing of it any more, whatever it is at."""
        del _world.pg_map[self]
        EchoGroup.living.remove(self)

    def all_gather_single(self, output: Tensor, own: Tensor, options: Any = None) -> Any:
        def gather(into: Tensor, given: Tensor) -> None:
            rows = into.view(self.size(), -1)
            rows.copy_(given.view(1, -1).expand_as(rows))
            self.spoil(rows)

        return self._start(gather, output, own)

    def allgather(self, outputs: Sequence[Sequence[Tensor]], own: Sequence[Tensor], options: Any = None) -> Any:
        def gather(given: Tensor, *into: Tensor) -> None:
            for each in into:
                each.copy_(given)

        return self._start(gather, own[0], *outputs[0])

    def allreduce(self, tensors: Sequence[Tensor], options: Any = None) -> Any:
        return self._start(lambda tensor: tensor.mul_(self.size()), tensors[0])

    def barrier(self, opts: Any = None) -> Any:
        return _Ended()

    def broadcast(self, tensors: Sequence[Tensor], options: Any = None) -> Any:
        return self._start(lambda tensor: None, tensors[0])

    def all_to_all_single(
        self, output: Tensor, given: Tensor, arriving: Sequence[int], leaving: Sequence[int], options: Any = None
    ) -> Any:
        def exchange(into: Tensor, all_parts: Tensor) -> None:
            kept = all_parts.split(list(leaving))[self.rank()]
            for part in into.split(list(arriving)):
                part.copy_(kept)

        return self._start(exchange, output, given)

    _allgather_base, alltoall_base = all_gather_single, all_to_all_single  # as torch called them before 2.13

    def _start(self, collective: Callable[..., object], *tensors: Tensor) -> Any:
        if self._accelerator is None or not isinstance(tensors[0], DeviceTensor):
            collective(*tensors)
            return _Ended()
        accelerator, stream = self._accelerator, self._stream
        assert stream
        memories = []
        for tensor in tensors:
            assert isinstance(tensor, DeviceTensor)
            memories.append(tensor.memory)
            accelerator.record(tensor, stream)
        stream.wait_stream(accelerator.current_stream())
        stream.push(lambda: collective(*memories))
        return _Queued(accelerator, stream, list(tensors), self._backend)


class _Ended:
    def wait(self) -> None:
        return

    def get_future(self) -> Any:
        done: Future[list[Tensor]] = Future()
        done.set_result([])
        return done


class _Queued:
    def __init__(self, accelerator: FakeAccelerator, stream: Any, tensors: list[Tensor], backend: str) -> None:
        self._accelerator, self._point, self._backend = accelerator, stream.end, backend
        self._future: Any = Future()
        if backend == "nccl":
            self._future = FakeFuture(accelerator)
            with accelerator.using(stream):
                self._future.set_result(tensors)
        else:
            self._future.set_result([])

    def wait(self) -> None:
        self.synchronize()

    def synchronize(self) -> None:
        self._accelerator.current_stream().wait(self._point)

    def get_future(self) -> Any:
        return self._future
