"""Payloads of few coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.quantization.integers import (
    bit_bytes,
    integer_bytes,
    pack_bits,
    pack_integers,
    unpack_bits,
    unpack_integers,
)
from lqray.quantization.payload import Payload


def kept(n: int, density: float) -> int:
    """How many of n coordinates a share of them is: at least one, of some."""
    return min(n, max(1, round(density * n)))


@dataclass(frozen=True)
class SparsePayload(Payload):
    """k values and, where they are not known otherwise, their indices.

    values: dtype in which they travel. indices: bytes of the indices; see `index_bytes`.
    """

    k: int
    values: torch.dtype
    indices: int

    @property
    def expected_bytes(self) -> int:
        """See `Payload.expected_bytes`."""
        return self.k * self.values.itemsize + self.indices

    def described(self) -> str:
        """See `Payload.described`."""
        return f"{self.k} of {self.n} coordinates"

    def read(self) -> Tensor:
        """The values, float32 (k,)."""
        return read_values(self.buffer, self)


def read_values(buffer: Tensor, like: SparsePayload) -> Tensor:
    """The values in a buffer, float32 (k,)."""
    part = buffer[: like.k * like.values.itemsize]
    return part.clone(memory_format=torch.contiguous_format).view(like.values).to(torch.float32)


def index_bytes(n: int, k: int) -> int:
    """Bytes of the indices of k of n coordinates: the fewest of nothing where all are sent, a bit for each of n, or k
    integers of ceil(log2 n) bits."""
    return 0 if k == n else min(bit_bytes(n), integer_bytes(k, (n - 1).bit_length()))


def write_indices(indices: Tensor, n: int) -> Tensor:
    """Ascending int64 (k,) of [0, n) as uint8 (index_bytes(n, k),)."""
    k = indices.numel()
    size = index_bytes(n, k)
    if not size:
        return torch.empty(0, dtype=torch.uint8, device=indices.device)
    if size == bit_bytes(n):
        mask = torch.zeros(n, dtype=torch.bool, device=indices.device)
        mask[indices] = True
        return pack_bits(mask)
    return pack_integers(indices, (n - 1).bit_length())


def read_indices(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `write_indices`: int64 (k,). Of bytes that it has not written, indices within [0, n)."""
    if k == n:
        return torch.arange(n, device=packed.device)
    if packed.numel() == bit_bytes(n):
        found = torch.nonzero(unpack_bits(packed, n)).view(-1)[:k]
        return torch.nn.functional.pad(found, (0, k - found.numel()))
    return unpack_integers(packed, k, (n - 1).bit_length()).clamp(max=n - 1)
