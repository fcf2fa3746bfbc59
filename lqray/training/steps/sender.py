"""How workers' tensors become their mean: by the exchange that quantizes gradients elsewhere, by torch's hooks, or by a
plain all-reduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.futures import Future

from lqray.communication import Volume
from lqray.communication.bucket import FlatBucket
from lqray.communication.skipped import Bundle
from lqray.training.anchors import Anchors
from lqray.training.wires import Wires

Tensors = Mapping[str, Tensor]
"""By the names of parameters, of their shapes."""
_Shapes = Mapping[str, torch.Size]
_Numbered = tuple[int, tuple[str, ...]]


@dataclass
class Sent:
    """Tensors under way. volume: what they move; whole once they are there."""

    shapes: _Shapes
    volume: Volume
    _parts: list[tuple[tuple[str, ...], Future[Tensor]]] = field(default_factory=list)
    _means: dict[str, Tensor] | None = None

    def means(self) -> dict[str, Tensor]:
        """Waits for them: the mean over all workers, alike on all ranks."""
        if self._means is None:
            self._means = {}
            for names, future in self._parts:
                flat = future.wait()
                sizes = [self.shapes[name].numel() for name in names]
                for name, part in zip(names, flat.split(sizes), strict=True):
                    self._means[name] = part.view(self.shapes[name])
        return self._means

    def add(self, names: tuple[str, ...], mean: Future[Tensor]) -> None:
        """Of these names, one after the other, (n,)."""
        self._parts.append((names, mean))

    @classmethod
    def arrived(cls, means: Tensors, volume: Volume) -> Sent:
        """What a checkpoint has of them."""
        return cls({name: mean.shape for name, mean in means.items()}, volume, _means=dict(means))


class Sender:
    """Sends tensors of all workers of this process, in buckets of at most `exchange.bucket_cap_mb` of each fragment."""

    def __init__(self, wires: Wires, anchors: Anchors, fragments: Sequence[Sequence[str]], cap_mb: float) -> None:
        self._wires, self._anchors = wires, anchors
        self._buckets: list[list[_Numbered]] = []
        number = 0
        for names in fragments:
            cut = _cut(names, anchors, cap_mb * 2**20)
            self._buckets.append(list(enumerate(cut, number)))
            number += len(cut)

    def send(
        self, number: int, fragments: Sequence[int], tensors: Sequence[Tensors], measure: bool, keep: bool
    ) -> Sent:
        """Start exchange `number`, of these fragments: each worker's tensors, which stay as they are. measure, keep: as
        of `GradientExchange.begin_step`."""
        self._wires.begin_step(number, measure, keep)
        buckets = [bucket for fragment in fragments for bucket in self._buckets[fragment]]
        shapes = {name: self._anchors[name].shape for _, names in buckets for name in names}
        if self._wires.exchange:
            for others in tensors[:-1]:
                for name in shapes:
                    self._anchors[name].grad = others[name].contiguous()
                self._wires.exchange.set_aside()
            send, volume = self._wires.exchange.exchange_bucket, self._wires.exchange.volume
        elif self._wires.baseline:
            send, volume = self._wires.baseline.exchange, self._wires.baseline.volume
        else:
            return self._all_reduced(buckets, tensors, shapes)
        sent = Sent(shapes, volume)
        for index, names in buckets:
            held = [_last_or_mean([each[name] for each in tensors], self._wires.exchange is None) for name in names]
            owners = [self._anchors[name] for name in names]
            future = send(FlatBucket(index, index == buckets[-1][0], owners, held))
            if self._wires.baseline and self._wires.baseline.one_at_a_time:
                future.wait()
            sent.add(names, future)
        return sent

    def _all_reduced(self, buckets: Sequence[_Numbered], tensors: Sequence[Tensors], shapes: _Shapes) -> Sent:
        sent = Sent(shapes, Volume())
        bundle = Bundle(self._wires.group, len(tensors))
        for _, names in buckets:
            flats = [torch.cat([each[name].reshape(-1) for name in names]) for each in tensors]
            sent.add(names, bundle.add(flats, sent.volume))
        bundle.start(sent.volume)
        return sent


def _last_or_mean(tensors: Sequence[Tensor], mean: bool) -> Tensor:
    """An exchange knows the other workers' already; torch's hooks know one worker a process."""
    if not mean or len(tensors) == 1:
        return tensors[-1]
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total / len(tensors)


def _cut(names: Sequence[str], anchors: Anchors, most: float) -> list[tuple[str, ...]]:
    """Neighbours of one dtype and device, together of at most so many bytes, or one that alone has more."""
    cut: list[list[str]] = []
    size = 0
    for name in names:
        one = anchors[name]
        before = anchors[cut[-1][-1]] if cut else None
        size += one.numel() * one.element_size()
        if before is None or size > most or (before.dtype, before.device) != (one.dtype, one.device):
            cut.append([])
            size = one.numel() * one.element_size()
        cut[-1].append(name)
    return [tuple(each) for each in cut]
