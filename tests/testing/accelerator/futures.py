"""Futures as torch's are on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from tests.testing.accelerator.device import FakeAccelerator


class FakeFuture:
    """`torch.futures.Future(devices=[device])`; with `knows_device` False one without devices.

    Whoever waits, and every callback, on a stream of its own, waits for where the current stream was when the result
    was set, and tensors of the result are recorded on its stream. Without the device nothing of that happens.
    """

    def __init__(self, accelerator: FakeAccelerator, knows_device: bool = True) -> None:
        self._accelerator = accelerator
        self._knows_device = knows_device
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._value: Any = None
        self._error: Exception | None = None
        self._point: Any = None

    def done(self) -> bool:
        return self._ended.is_set()

    def set_result(self, value: Any) -> None:
        self._end(value, None)

    def set_exception(self, error: Exception) -> None:
        self._end(None, error)

    def value(self) -> Any:
        if not self.done():
            raise RuntimeError("this future has not ended")
        if self._error:
            raise self._error
        return self._value

    def wait(self) -> Any:
        if not self._ended.wait(60):
            raise TimeoutError("nobody has completed this future for a minute")
        if self._knows_device:
            self._follow()
        return self.value()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        def call() -> None:
            if not self._knows_device:
                callback(self)
                return
            with self._accelerator.using(self._accelerator.stream()):
                self._follow()
                callback(self)

        with self._lock:
            if not self.done():
                self._callbacks.append(call)
                return
        call()

    def then(self, callback: Callable[[Any], Any]) -> FakeFuture:
        following = FakeFuture(self._accelerator, self._knows_device)

        def call(done: Any) -> None:
            try:
                following.set_result(callback(done))
            except Exception as error:
                following.set_exception(error)

        self.add_done_callback(call)
        return following

    def _end(self, value: Any, error: Exception | None) -> None:
        with self._lock:
            if self.done():
                raise RuntimeError("a future ends once")
            self._value, self._error = value, error
            self._point = self._accelerator.current_stream().end
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for call in callbacks:
            call()

    def _follow(self) -> None:
        stream = self._accelerator.current_stream()
        stream.wait(self._point)
        for each in tree_leaves(self._value):
            if hasattr(each, "block"):
                self._accelerator.record(each, stream)
