"""Backward passes of a DDP model, seen from its parameters: in which order gradients come, and whether the optimizer
has done its part since the last exchange."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Passes:
    """Watches parameters by a hook on each, which runs before a pass adds to its gradient.

    order: the parameters in the order in which the passes of the first exchange reached them; None before its end. DDP
    lays its buckets out anew in this order.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.order: list[Tensor] | None = None
        self._reached: dict[Tensor, None] = {}
        self._waits, self._repeated, self._stepped = False, False, False
        self._versions = 0
        self._own = set(parameters)
        self._handles = [parameter.register_hook(_forwarder(self, parameter)) for parameter in self._own]
        self._handles.append(register_optimizer_step_post_hook(_step_forwarder(self)))

    def is_repetition(self) -> bool:
        """Whether the passes since the last exchange began with its gradients still in place: neither reset to None or
        zero, nor used by an optimizer."""
        return self._repeated

    def exchanged(self) -> None:
        """All gradients of these passes have been handed over."""
        if self.order is None:
            self.order = list(self._reached)
        self._versions = _versions_of(self._reached)
        self._waits, self._repeated, self._stepped = True, False, False

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def reach(self, parameter: Tensor) -> None:
        """A pass has come to a parameter, whose gradient it has not touched yet."""
        if self._waits:
            self._repeated = not (self._stepped or self._is_reset())
            if not self._repeated:
                self._waits = False
                self._reached.clear()
        self._reached.pop(parameter, None)
        self._reached[parameter] = None

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer has made a step."""
        if self._waits and any(p in self._own for group in optimizer.param_groups for p in group["params"]):
            self._stepped = True

    def _is_reset(self) -> bool:
        # Fused optimizers leave the version of what they change, others are no torch.optim.Optimizer: hence both.
        gradients = [parameter.grad for parameter in self._reached]
        if any(gradient is None for gradient in gradients) or self._versions != _versions_of(self._reached):
            return True
        return any(gradient is not None and not gradient.any() for gradient in gradients)


def rehearse(model: DistributedDataParallel, order: Sequence[Tensor]) -> None:
    """A backward pass of zeros that reaches the parameters in `order`, after which DDP lays out its buckets as after
    one of real gradients. Gradients are left as they were."""
    gradients = {parameter: parameter.grad for parameter in order}
    for parameter in order:
        parameter.grad = None
    reducer: Any = model.reducer
    reducer.prepare_for_forward()
    reducer.prepare_for_backward([])
    for parameter in order:
        torch.autograd.backward([parameter], [torch.zeros_like(parameter)])
    for parameter, gradient in gradients.items():
        parameter.grad = gradient


def _versions_of(parameters: Iterable[Tensor]) -> int:
    """A number that is another one once any of them was changed in place."""
    return sum(parameter._version for parameter in parameters)


def _forwarder(passes: Passes, parameter: Tensor) -> Callable[[Tensor], None]:
    """A hook that keeps neither alive: the parameter holds it."""
    watcher, watched = weakref.ref(passes), weakref.ref(parameter)

    def reached(_: Tensor) -> None:
        passes, parameter = watcher(), watched()
        if passes is not None and parameter is not None:
            passes.reach(parameter)

    return reached


def _step_forwarder(passes: Passes) -> Callable[[Optimizer, tuple[Any, ...], dict[Any, Any]], None]:
    watcher = weakref.ref(passes)

    def stepped(optimizer: Optimizer, *_: Any) -> None:
        if (passes := watcher()) is not None:
            passes.stepped(optimizer)

    return stepped
