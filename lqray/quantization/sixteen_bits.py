"""Gradients cast to a type of 16 bits: what every compressor is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from lqray.quantization.codec import cast, flattened
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import Payload


class SixteenBits(Compressor):
    """Rounded to the nearest float16 or bfloat16, whichever the method is called. In training torch's own hook does the
    same by an all-reduce (`lqray.communication.baselines`); this is for everything else that compares compressors."""

    deterministic = True

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> Payload:
        """See `Compressor.encode`; no seed enters."""
        cast_down = flattened(self.name, tensor).to(self._dtype)
        return Payload(cast_down.contiguous().view(torch.uint8), tensor.numel(), tensor.dtype, offset)

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        payload.check()
        values = payload.buffer.clone().view(self._dtype)
        return cast(values.to(torch.float32), payload.dtype, payload.offset)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.name == "fp16" else torch.bfloat16
