"""What compressing lost, kept for the next step: the memory of error feedback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lqray.communication import streams
from lqray.experiment.options.exchange import ExchangeOptions

Key = tuple[str, int]
"""A name and how many coordinates it has."""


class ErrorMemory:
    """Errors by name, zero at first, float32 whatever the gradients' type: smaller ones would drop what is added up.

    e <- decay e + (1 - decay) (h - decoded), where h is the tensor with e added. decay 0: error feedback as it was
    first proposed (Seide et al. 2014); above: a moving average of the errors (LoCo, Xie et al. 2024). reset: forget all
    before each iteration that is a multiple of it; 0: never.
    """

    def __init__(self, decay: float = 0.0, reset: int = 0) -> None:
        self._decay, self._reset = decay, reset
        self._held: dict[str, Tensor] = {}
        self._iteration = -1

    @classmethod
    def of(cls, options: ExchangeOptions) -> ErrorMemory:
        """As the options of an exchange have it."""
        return cls(options.feedback_decay, options.feedback_reset)

    def begin_step(self, iteration: int) -> None:
        """Call before a step's first tensor, or before each of them."""
        if iteration != self._iteration and self._reset and iteration % self._reset == 0:
            self._held.clear()
        self._iteration = iteration

    def added_to(self, tensor: Tensor, keys: Sequence[Key]) -> Tensor:
        """A tensor (n,), which holds these, one after the other, with their errors added, at least float32; the tensor
        stays as it is."""
        corrected = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for part, (name, size) in zip(corrected.split([size for _, size in keys]), keys, strict=True):
            held = self._held.get(name)
            if held is not None and held.numel() == size:
                streams.used_here(held)
                part += held.to(part)
        return corrected

    def keep(self, corrected: Tensor, decoded: Tensor, keys: Sequence[Key]) -> Tensor:
        """Remember what a corrected tensor (n,) lost that others decode so; returns that, float32 (n,). What is not
        finite is forgotten: it would stay for ever."""
        lost = (corrected - decoded).to(torch.float32)
        lost = torch.where(lost.isfinite(), lost, 0.0)
        for part, (name, size) in zip(lost.split([size for _, size in keys]), keys, strict=True):
            held = self._held.get(name)
            if self._decay:
                before = held if held is not None and held.numel() == size else 0.0
                part = self._decay * before + (1.0 - self._decay) * part
            self._held[name] = part
        return lost

    def rename(self, name: str, other: str) -> None:
        """Have what is held under a name under another one, unless something is."""
        held = self._held.pop(name, None)
        if held is not None:
            self._held.setdefault(other, held)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the errors: float32 (n,)."""
        streams.used_here(*self._held.values())
        return {name: held.clone() for name, held in sorted(self._held.items())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._held = {name: held.to(torch.float32, copy=True) for name, held in state.items()}
        self._iteration = -1
