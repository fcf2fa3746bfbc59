"""Gradients beside those that are exchanged: what levels are fitted to, and what is measured of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lqray.communication.numbering import layer_offset
from lqray.communication.preconditioner import Preconditioner, divided, scales_of
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor
from lqray.quantization.place import Place

_ANYWHERE = Place()


class ExtraGradients:
    """What an exchange makes of a worker's gradient of the whole model without sending it."""

    compressor: Compressor
    _options: ExchangeOptions
    _skipped: frozenset[str]
    _preconditioner: Preconditioner | None
    _unfitted: bool

    def fresh_samples(self, iteration: int) -> int:
        """Extra gradients to `observe` after this iteration's backward pass, before `update_levels`."""
        due = self._unfitted or self.compressor.schedule.is_due(iteration)
        wanted = self.compressor.fresh_samples and due
        return self.compressor.samples if wanted else 0

    def observe(self, gradients: Mapping[str, Tensor], worker: int = 0) -> None:
        """Add a worker's extra gradient of the whole model, a tensor for each parameter's name, to what the next update
        fits to."""
        for tensor, scale in self._divided(gradients):
            self.compressor.observe(divided(tensor, scale), worker)

    def rounded(self, gradients: Mapping[str, Tensor], *, seed: int, offset: int, place: Place = _ANYWHERE) -> Tensor:
        """A worker's extra gradient of the whole model as others would receive it: the decoded coordinates (n,) of what
        is quantized, in the order of `gradients`. Nothing is sent and no state changes. seed, offset: as of
        `Quantizer.encode`; the offset has 52 bits. place: of the worker, among those that round together."""
        decoded = []
        for number, (tensor, scale) in enumerate(self._divided(gradients)):
            numbers = {"seed": seed, "offset": layer_offset(offset, number)}
            payload = self.compressor.encode_at(divided(tensor, scale), place, **numbers)
            decoded.append(self.compressor.decode(payload) * (1.0 if scale is None else scale))
        return torch.cat(decoded) if decoded else torch.zeros(0)

    def quantized_part(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The coordinates (n,) that `rounded` rounds, exact."""
        kept = [tensor.reshape(-1) for tensor, _ in self._divided(gradients)]
        return torch.cat(kept) if kept else torch.zeros(0)

    def _divided(self, gradients: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        """What is quantized of the whole model's gradients, tensor by tensor, and what each is divided by first."""
        kept = {name: gradient for name, gradient in gradients.items() if name not in self._skipped}
        keys = [(name, gradient.numel()) for name, gradient in kept.items()]
        tensors, held = list(kept.values()), [[key] for key in keys]
        if kept and not (self._options.buckets == "layer" or self.compressor.layers):
            tensors, held = [torch.cat([gradient.reshape(-1) for gradient in tensors])], [keys]
        return list(zip(tensors, scales_of(self._preconditioner, tensors, held), strict=True))
