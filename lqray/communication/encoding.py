"""How the tensors of a step become payloads, and what is looked at meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lqray.communication.bucket import Cut, Span, keys_of
from lqray.communication.extra import ExtraGradients
from lqray.communication.hosts import Senders
from lqray.communication.measurement import Measuring
from lqray.communication.memory import Key
from lqray.communication.numbering import layer_offset, offset_of
from lqray.communication.preconditioner import divided, scales_of
from lqray.communication.residuals import Residuals
from lqray.communication.wire.parcel import encoded_parts
from lqray.communication.wire.volume import Volume
from lqray.quantization import Compressor, Payload
from lqray.quantization.place import Place


class Encoding(ExtraGradients, Measuring):
    """What an exchange makes of its workers' tensors before it sends them."""

    volume: Volume
    _senders: Senders
    _together: Place
    _iteration: int
    _residuals: Residuals | None

    def place(self, worker: int, part: int = 0) -> Place:
        """Among all senders, of the one with this number here, for a part of a tensor."""
        here, group = len(self._senders.seeds), self._senders.group
        return replace(self._together, worker=group.rank() * here + worker, workers=group.size() * here, part=part)

    def _encoded(
        self,
        tensors: Sequence[Sequence[Tensor]],
        cut: Cut,
        offsets: Sequence[int],
        scales: Sequence[Tensor | None],
        parts: int,
    ) -> list[list[Payload]]:
        """Payloads of each sender's tensors, each in so many parts, one after the other."""
        payloads = []
        for worker, (own, seed) in enumerate(zip(tensors, self._senders.seeds, strict=True)):
            each = zip(map(divided, own, scales), cut.tensors, offsets, scales, strict=True)
            payloads.append([payload for one in each for payload in self._encode(worker, seed, parts, *one)])
        return payloads

    def _look_at(self, tensors: Sequence[Sequence[Tensor]], cut: Cut, index: int) -> None:
        """What a quantized exchange would observe and measure, where one in full precision takes its place."""
        tensors = self._senders.take(tensors, self.volume)
        scales = scales_of(self._preconditioner, tensors[0], [keys_of(spans) for spans in cut.tensors])
        for worker, (own, seed) in enumerate(zip(tensors, self._senders.seeds, strict=True)):
            each = zip(own, cut.tensors, self._offsets(cut, index)[1], scales, strict=True)
            for gradient, spans, offset, scale in each:
                shaped = self._shaped(divided(gradient, scale), spans)
                compressor = self.compressor.of_parameter(spans[0].name)
                place, numbers = self.place(worker), {"seed": seed, "offset": offset}
                payloads = [compressor.encode_at(shaped, place, **numbers)] if self._observed.measure else []
                self._observed.note(worker, shaped, payloads, compressor, self._keys(spans), scale)

    def _offsets(self, cut: Cut, index: int) -> tuple[int, list[int]]:
        """(offset of a DDP bucket, of each of its tensors)."""
        first = offset_of(self._iteration, index)
        return first, [layer_offset(first, number) for number in range(len(cut.tensors))]

    def _encode(
        self,
        worker: int,
        seed: int,
        parts: int,
        gradient: Tensor,
        spans: Sequence[Span],
        offset: int,
        scale: Tensor | None,
    ) -> Sequence[Payload]:
        """Of a worker's tensor (n,), which was divided by `scale`, in so many parts."""
        dtype = gradient.dtype
        with self.volume.timed("encode", gradient.device):
            if self._residuals:
                gradient = self._residuals.added_to(gradient, spans, worker)
            shaped, compressor = self._shaped(gradient, spans), self.compressor.of_parameter(spans[0].name)
            at = compressor, self.place(worker)
            payloads: Sequence[Payload] = encoded_parts(shaped, parts, *at, seed=seed, offset=offset)
            unfitted = self._unfitted or (compressor is not self.compressor and _to_be_fitted(compressor))
            if self._residuals and not unfitted:
                payloads = self._residuals.keep(gradient, payloads, spans, worker)
        self.volume.coordinates += gradient.numel()
        self._observed.note(worker, shaped, payloads, compressor, self._keys(spans), scale)
        return [replace(payload, dtype=dtype) for payload in payloads]

    def _shaped(self, gradient: Tensor, spans: Sequence[Span]) -> Tensor:
        """A tensor (n,) of these spans as the compressor wants it."""
        return gradient.view(spans[0].shape or -1) if self.compressor.layers else gradient

    def _keys(self, spans: Sequence[Span]) -> Sequence[Key]:
        """What a tensor of these spans holds, where its error is to be held beside second moments."""
        return keys_of(spans) if self._moments else ()


def _to_be_fitted(compressor: Compressor) -> bool:
    """Of a plan: the others may have been, while its own parameters had no gradients."""
    return compressor.adapts and not compressor.fitted
