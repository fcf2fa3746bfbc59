"""Gradients divided by the root of their second moment before they are compressed, and multiplied by it afterwards.

Optimizers such as Adam divide by it anyway, so that an error in a quiet coordinate costs as much as one in a loud
coordinate. All ranks hold the same second moment, to the bit, since it comes from decoded means or from an optimizer
that has seen these: it costs no bit on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.futures import Future

from lqray import ops
from lqray.communication.bucket import Cut, keys_of
from lqray.communication.memory import Key
from lqray.communication.moments import DecodedMoments, Moments, OptimizerMoments
from lqray.communication.wire.parcel import joined
from lqray.experiment.options.exchange import ExchangeOptions

_GROUP = 64
_LEAST_OF_ALL = 0.01
_TINY = 2.0**-100


class Preconditioner:
    """What gradients are divided by: c = sqrt(v), v the second moment, but at least `floor` times its root mean square
    over 64 neighbours, and floor / 100 times that over the whole tensor: coordinates that were quiet so far may become
    loud. 1 where v is not known yet."""

    def __init__(self, moments: Moments, floor: float = 0.3) -> None:
        self.moments, self._floor = moments, floor

    @classmethod
    def of(cls, options: ExchangeOptions) -> Preconditioner | None:
        """As the options of an exchange have it."""
        if not options.precondition or options.trajectory == "full_precision":
            return None
        own = options.precondition is True
        return cls(
            DecodedMoments(options.precondition_decay) if own else OptimizerMoments(), options.precondition_floor
        )

    def scale(self, like: Tensor, keys: Sequence[Key]) -> Tensor | None:
        """c of a tensor (n,), float32, which holds these, one after the other; None where it is 1. Every operation is
        rounded once and sums have one order, so that all ranks have the same bits."""
        v = self.moments.of(keys, like.device)
        if v is None:
            return None
        c = v.to(torch.float64).sqrt().to(torch.float32)
        group = ops.bucket_norms(c, _GROUP, "l2") * (_GROUP**-0.5)
        whole = ops.bucket_norms(c, max(1, c.numel()), "l2") * (max(1, c.numel()) ** -0.5)
        least = torch.maximum(self._floor * group, _LEAST_OF_ALL * self._floor * whole).clamp(min=_TINY)
        return torch.maximum(c, least.repeat_interleave(_GROUP)[: c.numel()])

    def finished(self, mean: Tensor, scale: Tensor | None, keys: Sequence[Key], dtype: torch.dtype) -> Tensor:
        """The mean (n,) of gradients that were divided by `scale`, multiplied by it, in `dtype`; learns from it."""
        whole = (mean if scale is None else mean.to(torch.float32) * scale).to(dtype)
        self.moments.keep(whole, keys)
        return whole


def divided(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A gradient of any shape over what `Preconditioner.scale` says of it, float32; as it is where that is None."""
    return tensor if scale is None else tensor.to(torch.float32) / scale.view(tensor.shape)


def scales_of(
    preconditioner: Preconditioner | None, tensors: Sequence[Tensor], keys: Sequence[Sequence[Key]]
) -> list[Tensor | None]:
    """What each of several tensors is divided by."""
    pairs = zip(tensors, keys, strict=True)
    return [preconditioner.scale(one, held) if preconditioner else None for one, held in pairs]


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
