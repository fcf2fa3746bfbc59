"""Gradients of a whole model that no step exchanges: what levels are fitted to, and telemetry rounds, beside those that
are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.communication.bucket import encoded_together
from lqray.communication.preconditioner import Preconditioner, divided, scales_of
from lqray.quantization import Compressor
from lqray.quantization.place import Place


@dataclass(frozen=True)
class Piece:
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


def pieces_of(
    gradients: Mapping[str, Tensor], compressor: Compressor, by_layer: bool, preconditioner: Preconditioner | None
) -> list[Piece]:
    """What is encoded of a model's gradients, by parameters' names, all of which are quantized."""
    groups = [
        [list(gradients)[place] for place in group] for group in encoded_together(list(gradients), compressor, by_layer)
    ]
    tensors = [
        gradients[names[0]] if by_layer else torch.cat([gradients[name].reshape(-1) for name in names])
        for names in groups
    ]
    keys = [[(name, gradients[name].numel()) for name in names] for names in groups]
    scales = scales_of(preconditioner, tensors, keys)
    owners = [compressor.of_parameter(names[0]) for names in groups]
    return [Piece(*one) for one in zip(owners, tensors, scales, strict=True)]
