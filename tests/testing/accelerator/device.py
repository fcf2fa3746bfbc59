"""Tensors of the fake accelerator, what is done with them, and the vocabulary of `streams.Accelerator` for it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from lqray.communication import streams
from tests.testing.accelerator.futures import FakeFuture
from tests.testing.accelerator.machine import Block, Event, Machine, Stream, poisoned

# A device type for which every torch has guards, and which needs nothing to be initialized.
DEVICE = torch.device("lazy:0")


class DeviceTensor(Tensor):
    """A tensor whose numbers are in `memory`, a CPU tensor, once the stream that computes them has come to it."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    memory: Tensor
    block: Block
    accelerator: FakeAccelerator

    @staticmethod
    def __new__(cls, memory: Tensor, block: Block, accelerator: FakeAccelerator) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=DEVICE,
        )
        made.memory, made.block, made.accelerator = memory, block, accelerator
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        owner = next(each for each in tree_leaves((args, kwargs)) if isinstance(each, DeviceTensor))
        return owner.accelerator.do(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _Factories(TorchDispatchMode):
    """Tensors are made on the accelerator, too."""

    def __init__(self, accelerator: FakeAccelerator) -> None:
        super().__init__()
        self._accelerator = accelerator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = any(isinstance(each, DeviceTensor) or _is_device(each) for each in tree_leaves((args, kwargs)))
        return self._accelerator.do(func, args, kwargs) if on_device else func(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """torch.tensor, which looks past a dispatch mode, goes by way of the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **(kwargs | {"device": "cpu"})).to(DEVICE)
        return func(*args, **kwargs)


class FakeAccelerator:
    """See `streams.Accelerator`. order: one of `machine.ORDERS`."""

    def __init__(self, order: str | int) -> None:
        self.machine = Machine(order)
        self._default = Stream(self.machine)
        self._of_thread = threading.local()

    @contextmanager
    def installed(self, monkeypatch: Any) -> Iterator[FakeAccelerator]:
        """lqray takes it for the accelerator of this process."""
        monkeypatch.setattr(streams, "accelerator", self)
        gc.freeze()  # what is there before need not be searched each time that tests collect
        try:
            with self.using(self._default):
                yield self
        finally:
            gc.unfreeze()

    def serves(self, device: torch.device) -> bool:
        return device.type == DEVICE.type

    def device(self) -> torch.device:
        return DEVICE

    def stream(self, device: torch.device = DEVICE) -> Stream:
        return Stream(self.machine)

    def current_stream(self, device: torch.device = DEVICE) -> Stream:
        stream: Stream = getattr(self._of_thread, "stream", self._default)
        return stream

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._of_thread.stream = stream
        try:
            with _Literals(), _Factories(self):
                yield
        finally:
            self._of_thread.stream = before

    def event(self, timed: bool) -> Event:
        return Event(self.machine)

    def record(self, tensor: Tensor, stream: Stream) -> None:
        assert isinstance(tensor, DeviceTensor)
        tensor.block.users.add(stream)

    def future(self, device: torch.device) -> Any:
        return FakeFuture(self)

    def host_memory(self, like: Tensor) -> Tensor:
        made = torch.empty(like.shape, dtype=like.dtype)
        poisoned(made)
        return made

    def synchronize(self, device: torch.device = DEVICE) -> None:
        for stream in list(self.machine.streams):
            stream.synchronize()

    def do(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Queue an operation on the current stream; what it returns has its shape at once, and its numbers later."""
        if func is torch.ops.aten._to_copy.default and kwargs.get("device", DEVICE) != args[0].device:
            return self._moved(args[0], kwargs)
        if func is torch.ops.aten.copy_.default and {type(args[0]), type(args[1])} != {DeviceTensor}:
            return self._copied(*args)
        memories = tree_map(_memory_of, (args, kwargs))
        returned = func._schema.returns
        if any(each.alias_info and not each.alias_info.is_write for each in returned):
            block = next(each.block for each in tree_leaves((args, kwargs)) if isinstance(each, DeviceTensor))
            seen = func(*memories[0], **memories[1])
            return tree_map_only(Tensor, lambda memory: DeviceTensor(memory, block, self), seen)
        if func._schema.is_mutable:
            self.current_stream().push(lambda: func(*memories[0], **memories[1]))
            return self._written(func, args, kwargs) if returned else None
        if _needs_numbers(func, args):
            self.current_stream().synchronize()
            return tree_map_only(Tensor, self._filled, func(*memories[0], **memories[1]))
        return self._computed(func, args, kwargs, memories)

    def allocate(self, memory: Tensor) -> DeviceTensor:
        """Memory becomes the current stream's, with nothing in it that could be relied on."""
        block = Block(poisoned(memory), self.current_stream())
        weakref.finalize(block, self.machine.free, Block(block.memory, block.stream, block.users))
        return DeviceTensor(memory, block, self)

    def _computed(self, func: Any, args: Any, kwargs: Any, memories: Any) -> Any:
        shapes = tree_map(_shape_of, (args, kwargs))
        made = func(*shapes[0], **shapes[1])
        results = tree_map_only(Tensor, lambda each: self.allocate(_like(each)), made)
        targets = [each.memory for each in tree_leaves(results) if isinstance(each, DeviceTensor)]
        if func._schema.name.split("::")[1] in ("empty", "new_empty", "empty_strided", "empty_like"):
            return results

        def compute() -> None:
            found = [each for each in tree_leaves(func(*memories[0], **memories[1])) if isinstance(each, Tensor)]
            for target, each in zip(targets, found, strict=True):
                target.copy_(each)

        self.current_stream().push(compute)
        return results

    def _filled(self, numbers: Tensor) -> DeviceTensor:
        made = self.allocate(_like(numbers))
        made.memory.copy_(numbers)
        return made

    def _moved(self, tensor: Tensor, kwargs: Any) -> Tensor:
        dtype = kwargs.get("dtype") or tensor.dtype
        source, target = _memory_of(tensor), torch.empty(tensor.shape, dtype=dtype)
        to_device = kwargs["device"] == DEVICE
        result: Tensor = self.allocate(target) if to_device else target
        self._queue_copy(target, source, wait=not kwargs.get("non_blocking"))
        return result

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        self._queue_copy(_memory_of(target, False), _memory_of(source, False), wait=not non_blocking)
        return target

    def _queue_copy(self, target: Tensor, source: Tensor, wait: bool) -> None:
        self.current_stream().push(lambda: target.copy_(source))
        if wait:
            self.current_stream().synchronize()

    def _written(self, func: Any, args: Any, kwargs: Any) -> Any:
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                return given
        return kwargs["out"]


def _is_device(each: Any) -> bool:
    return isinstance(each, torch.device) and each == DEVICE


def _memory_of(each: Any, copied: bool = True) -> Any:
    if isinstance(each, DeviceTensor):
        return each.memory
    if isinstance(each, Tensor) and copied:
        return each.clone()
    return torch.device("cpu") if _is_device(each) else each


def _shape_of(each: Any) -> Any:
    if isinstance(each, Tensor):
        return torch.empty_strided(each.size(), each.stride(), dtype=each.dtype, device="meta")
    return torch.device("meta") if _is_device(each) else each


def _like(meta: Tensor) -> Tensor:
    return torch.empty_strided(meta.size(), meta.stride(), dtype=meta.dtype, device="cpu")


def _needs_numbers(func: Any, args: Any) -> bool:
    """Whether shapes, or what the host gets, depend on the numbers."""
    if func is torch.ops.aten.index.Tensor:
        return any(each is not None and each.dtype == torch.bool for each in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
