"""tensor <-> Payload: the bytes that travel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lqray import ops


@dataclass(frozen=True)
class Payload:
    """An encoded tensor.

    buffer: uint8, one dimension, contiguous: a float32 norm for each bucket, then `bits` bit planes of codes.
    n: coordinates. bits: planes. bucket_size: coordinates of a bucket. dtype: that of the tensor encoded,
    which decoding restores.
    """

    buffer: Tensor
    n: int
    bits: int
    bucket_size: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.buffer.numel()

    @property
    def norms(self) -> Tensor:
        """float32 norm of each bucket: (ceil(n / bucket_size),)."""
        return self.buffer[: ops.norm_bytes(self.n, self.bucket_size)].clone().view(torch.float32)

    @property
    def codes(self) -> Tensor:
        """uint8 code of each coordinate: (n,)."""
        return ops.unpack(self.buffer[ops.norm_bytes(self.n, self.bucket_size) :], self.n, self.bits)


def encode(x: Tensor, levels: Tensor, *, bits: int, bucket_size: int, norm: str, seed: int, offset: int) -> Payload:
    """Encode a tensor of any shape, row-major. Arguments and errors as in `lqray.ops.encode_fused`."""
    buffer = ops.encode_fused(x.reshape(-1), levels, bits, bucket_size, norm, seed, offset)
    return Payload(buffer, x.numel(), bits, bucket_size, x.dtype)


def decode(payload: Payload, levels: Tensor) -> Tensor:
    """The (n,) tensor that a payload stands for, in its own dtype. Raises ValueError for a payload of wrong length."""
    return ops.decode(payload.buffer, levels, payload.n, payload.bits, payload.bucket_size).to(payload.dtype)
