"""Gradients cast to a type of 16 bits: what every compressor is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from lqray.quantization.codec import cast, flattened
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import Payload
from lqray.quantization.sparse import SparsePayload


class SixteenBits(Compressor):
    """Rounded to the nearest float16 or bfloat16, whichever the method is called. In training torch's own hook does the
    same by an all-reduce (`lqray.communication.baselines`); this is for everything else that compares compressors."""

    deterministic = True

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> SparsePayload:
        """See `Compressor.encode`; no seed enters."""
        buffer = flattened(self.name, tensor).to(self._dtype, copy=True).view(torch.uint8)
        return SparsePayload(buffer, tensor.numel(), tensor.dtype, offset, tensor.numel(), self._dtype, 0)

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        payload.check()
        assert isinstance(payload, SparsePayload)
        return cast(payload.read(), payload.dtype, payload.offset)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.name == "fp16" else torch.bfloat16
