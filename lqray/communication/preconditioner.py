"""Gradients divided by the root of their second moment before they are compressed, and multiplied by it afterwards.

Optimizers such as Adam divide by it anyway, so that an error in a quiet coordinate costs as much as one in a loud
coordinate. All ranks hold the same second moment, to the bit, since it comes from decoded means: it costs no bit on the
wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.futures import Future

from lqray import ops
from lqray.communication import streams
from lqray.communication.bucket import Cut, Span
from lqray.communication.memory import Key
from lqray.communication.wire.parcel import joined
from lqray.experiment.options.exchange import ExchangeOptions

_GROUP = 64
_LEAST_OF_ALL = 0.01
_TINY = 2.0**-100


class Preconditioner:
    """Second moments by name: v <- decay v + (1 - decay) g^2, g the mean that all ranks decoded, float32.

    What gradients are divided by is c = sqrt(v / (1 - decay^t)), but at least `floor` times its root mean square over
    64 neighbours, and floor / 100 times that over the whole tensor: coordinates that were quiet so far may become loud.
    1 before the first step.
    """

    def __init__(self, decay: float = 0.95, floor: float = 0.3) -> None:
        self._decay, self._floor = decay, floor
        self._moments: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    @classmethod
    def of(cls, options: ExchangeOptions) -> Preconditioner | None:
        """As the options of an exchange have it."""
        return cls(options.precondition_decay, options.precondition_floor) if options.precondition else None

    def scale(self, like: Tensor, keys: Sequence[Key]) -> Tensor | None:
        """c of a tensor (n,), float32, which holds these, one after the other; None where it is 1. Every operation is
        rounded once and sums have one order, so that all ranks have the same bits."""
        if not all(self._steps.get(name, 0) and self._moments[name].numel() == size for name, size in keys):
            return None
        parts = [self._root(name).to(like.device) for name, _ in keys]
        streams.used_here(*parts)
        c = torch.cat(parts)
        group = ops.bucket_norms(c, _GROUP, "l2") * (_GROUP**-0.5)
        whole = ops.bucket_norms(c, max(1, c.numel()), "l2") * (max(1, c.numel()) ** -0.5)
        least = torch.maximum(self._floor * group, _LEAST_OF_ALL * self._floor * whole).clamp(min=_TINY)
        return torch.maximum(c, least.repeat_interleave(_GROUP)[: c.numel()])

    def keep(self, mean: Tensor, keys: Sequence[Key]) -> None:
        """Learn from a mean (n,) that all ranks have decoded. What is not finite counts as zero."""
        flat = mean.detach().to(torch.float32)
        flat = torch.where(flat.isfinite(), flat, 0.0)
        for part, (name, size) in zip(flat.split([size for _, size in keys]), keys, strict=True):
            held = self._moments.get(name)
            if held is None or held.numel() != size:
                held, self._steps[name] = torch.zeros_like(part), 0
            self._moments[name] = self._decay * held + (1 - self._decay) * (part * part)
            self._steps[name] += 1

    def finished(self, mean: Tensor, scale: Tensor | None, keys: Sequence[Key], dtype: torch.dtype) -> Tensor:
        """The mean (n,) of gradients that were divided by `scale`, multiplied by it, in `dtype`; learns from it."""
        whole = (mean if scale is None else mean.to(torch.float32) * scale).to(dtype)
        self.keep(whole, keys)
        return whole

    def _root(self, name: str) -> Tensor:
        correction = 1 / (1 - self._decay ** self._steps[name])
        return (self._moments[name] * correction).to(torch.float64).sqrt().to(torch.float32)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the moments, float32 (n,), and how many steps each has seen."""
        streams.used_here(*self._moments.values())
        state = {f"moment/{name}": held.clone() for name, held in sorted(self._moments.items())}
        return state | {f"steps/{name}": torch.tensor(steps) for name, steps in sorted(self._steps.items())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        moments = {key.partition("/")[2]: value for key, value in state.items() if key.startswith("moment/")}
        self._moments = {name: held.to(torch.float32, copy=True) for name, held in moments.items()}
        self._steps = {name: int(state[f"steps/{name}"]) for name in moments}


def divided(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A gradient of any shape over what `Preconditioner.scale` says of it, float32; as it is where that is None."""
    return tensor if scale is None else tensor.to(torch.float32) / scale.view(tensor.shape)


def scales_of(
    preconditioner: Preconditioner | None, tensors: Sequence[Tensor], keys: Sequence[Sequence[Key]]
) -> list[Tensor | None]:
    """What each of several tensors is divided by."""
    pairs = zip(tensors, keys, strict=True)
    return [preconditioner.scale(one, held) if preconditioner else None for one, held in pairs]


def keys_of(spans: Sequence[Span]) -> list[Key]:
    """What a tensor of these spans holds."""
    return [(span.name, span.size) for span in spans]


def finished_means(
    cut: Cut,
    preconditioner: Preconditioner | None,
    scales: Sequence[Tensor | None],
    dtype: torch.dtype,
    done: Future[list[Tensor]],
) -> list[Tensor]:
    """The mean of every tensor of a cut, of what their parts became."""
    parts = done.value()
    each = len(parts) // len(cut.tensors)
    means = [joined(parts[first : first + each]) for first in range(0, len(parts), each)]
    if preconditioner is None:
        return means
    keys = [keys_of(spans) for spans in cut.tensors]
    return [preconditioner.finished(*one, dtype) for one in zip(means, scales, keys, strict=True)]
