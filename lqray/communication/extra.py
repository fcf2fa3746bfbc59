"""Gradients of a whole model that no step exchanges: what levels are fitted to, and telemetry rounds, beside those that
are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.communication.bucket import encoded_together
from lqray.communication.numbering import layer_offset
from lqray.communication.preconditioner import Preconditioner, divided, scales_of
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor
from lqray.quantization.place import Place

_ANYWHERE = Place()


@dataclass(frozen=True)
class _Piece:
    """tensor: what one compressor encodes at a time, exact. scale: what it is divided by first."""

    compressor: Compressor
    tensor: Tensor
    scale: Tensor | None

    def observe(self, worker: int) -> None:
        """Add it to what the next fit is to."""
        self.compressor.observe(divided(self.tensor, self.scale), worker)

    def rounded(self, place: Place, *, seed: int, offset: int) -> Tensor:
        """As others would receive it: (n,)."""
        payload = self.compressor.encode_at(divided(self.tensor, self.scale), place, seed=seed, offset=offset)
        return self.compressor.decode(payload) * (1.0 if self.scale is None else self.scale)


class ExtraGradients:
    """What an exchange makes of a worker's gradient of the whole model without sending it."""

    compressor: Compressor
    _options: ExchangeOptions
    _skipped: frozenset[str]
    _preconditioner: Preconditioner | None
    _unfitted: bool

    def levels_due(self, iteration: int) -> bool:
        """Whether `update_levels` fits after this iteration: the schedule says so, or, with error feedback, nothing was
        fitted yet."""
        return self._unfitted or self.compressor.schedule.is_due(iteration)

    def fresh_samples(self, iteration: int) -> int:
        """Extra gradients to `observe` after this iteration's backward pass, before `update_levels`."""
        wanted = self.compressor.fresh_samples and self.levels_due(iteration)
        return self.compressor.samples if wanted else 0

    def observe(self, gradients: Mapping[str, Tensor], worker: int = 0) -> None:
        """Add a worker's extra gradient of the whole model, a tensor for each parameter's name, to what the next update
        fits to."""
        for piece in self._pieces(gradients):
            piece.observe(worker)

    def rounded(self, gradients: Mapping[str, Tensor], *, seed: int, offset: int, place: Place = _ANYWHERE) -> Tensor:
        """A worker's extra gradient of the whole model as others would receive it: the decoded coordinates (n,) of what
        is quantized, in the order of `quantized_part`. Nothing is sent and no state changes. seed, offset: as of
        `Quantizer.encode`; the offset has 52 bits. place: of the worker, among those that round together."""
        decoded = [
            piece.rounded(place, seed=seed, offset=layer_offset(offset, number))
            for number, piece in enumerate(self._pieces(gradients))
        ]
        return torch.cat(decoded) if decoded else torch.zeros(0)

    def quantized_part(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The coordinates (n,) that `rounded` rounds, exact: one compressor's after the other's."""
        kept = [piece.tensor.reshape(-1) for piece in self._pieces(gradients)]
        return torch.cat(kept) if kept else torch.zeros(0)

    @property
    def _by_layer(self) -> bool:
        """Whether each parameter's tensor is encoded on its own."""
        return self._options.buckets == "layer" or self.compressor.layers

    def _pieces(self, gradients: Mapping[str, Tensor]) -> list[_Piece]:
        """What is quantized of the whole model's gradients, as it is encoded."""
        kept = [name for name in gradients if name not in self._skipped]
        groups = [[kept[place] for place in each] for each in encoded_together(kept, self.compressor, self._by_layer)]
        tensors = [
            gradients[names[0]] if self._by_layer else torch.cat([gradients[name].reshape(-1) for name in names])
            for names in groups
        ]
        keys = [[(name, gradients[name].numel()) for name in names] for names in groups]
        scales = scales_of(self._preconditioner, tensors, keys)
        owners = [self.compressor.of_parameter(names[0]) for names in groups]
        return [_Piece(*one) for one in zip(owners, tensors, scales, strict=True)]
