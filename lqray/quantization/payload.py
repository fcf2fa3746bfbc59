"""What an encoded tensor is, whatever encoded it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lqray import ops


@dataclass(frozen=True)
class CodePlanes:
    """Where codes lie in a payload: `bits` bit planes of n codes from byte `begin` on."""

    begin: int
    n: int
    bits: int

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.begin + ops.code_bytes(self.n, self.bits)


@dataclass(frozen=True)
class Payload:
    """An encoded tensor.

    buffer: uint8, one dimension, contiguous: all that travels. n: coordinates of the tensor. dtype: that of the tensor
    encoded, which decoding restores. offset: that it was encoded at, and is cast at. owner: `Compressor.number` of
    what made it. Where it arrives all but the buffer is known, so that its length follows from the rest alone.
    """

    buffer: Tensor
    n: int
    dtype: torch.dtype
    offset: int
    owner: int = field(default=0, kw_only=True)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.buffer.numel()

    @property
    def bits_per_coordinate(self) -> float:
        """Bits on the wire for each coordinate, all of them counted; 0.0 without any coordinate."""
        return 8 * self.nbytes / self.n if self.n else 0.0

    @property
    def expected_bytes(self) -> int:
        """What a buffer of this payload's kind has, by its other fields; a kind that does not say it takes any."""
        return self.nbytes

    def planes(self) -> Sequence[CodePlanes]:
        """Where bit planes of codes lie, ascending: what an entropy coder may code. None unless a kind says so."""
        return ()

    def entropy_bits(self) -> float:
        """Bits per coordinate that an ideal entropy coder would leave of the codes; of a payload without codes, those
        that it has."""
        return self.bits_per_coordinate

    def huffman_bits(self) -> float:
        """As `entropy_bits`, of a Huffman code made for the codes' own frequencies."""
        return self.bits_per_coordinate

    def described(self) -> str:
        """What makes its length, for messages."""
        return f"{self.n} coordinates"

    def check(self, rows: Tensor | None = None) -> None:
        """Raises ValueError unless the buffer has the bytes that its n coordinates make; the same of `rows`, (W,
        bytes), payloads of other workers that this one stands for."""
        found, dimensions = (self.buffer, 1) if rows is None else (rows, 2)
        ops.check_memory("decode", payload=found)
        if found.dtype != torch.uint8 or found.dim() != dimensions or found.shape[-1] != self.expected_bytes:
            raise ValueError(
                f"a payload is {found.dtype} of shape {tuple(found.shape)}; allowed: torch.uint8 of "
                f"{self.expected_bytes} bytes, which is what {self.described()} make"
            )
        if rows is not None and not len(rows):
            raise ValueError("there is no payload to average; allowed: at least one row")


def floats(numbers: Tensor) -> Tensor:
    """Bytes (..., 4 n) of any strides as float32 (..., n), which share no memory with them."""
    if not numbers.numel():  # torch views rows of no bytes as nothing else
        return numbers.new_empty((*numbers.shape[:-1], numbers.shape[-1] // 4), dtype=torch.float32)
    return numbers.clone(memory_format=torch.contiguous_format).view(torch.float32)
