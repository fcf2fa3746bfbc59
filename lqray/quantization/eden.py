"""EDEN (Vargaftik et al., ICML 2022): blocks rotated at random, so that whatever they hold looks normal, and rounded to
the best quantizer of a normal variable. DRIVE (Vargaftik et al., NeurIPS 2021) is its case of one bit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lqray import ops
from lqray.ops import eden
from lqray.ops.checks import signed
from lqray.quantization import lloyd_max
from lqray.quantization.codec import cast, flattened, nearest_factors
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import CodePlanes, Payload, floats

SEED_BYTES = 8
LEAST_NORM = 2.0**-126
"""Below it a factor of its inverse would exceed float32; such blocks are rounded coarser."""
_PARTS = 2**16


@dataclass(frozen=True)
class BlockPayload(Payload):
    """Codes of rotated blocks: the buffer holds the seed of the rotation (8 bytes), `head` bytes of the blocks' norms,
    then planes of codes.

    block_size: coordinates of a block. planes_of_codes: of block_size / 8 bytes each. head: bytes of norms. width: bits
    of every code, where it is one for all.
    """

    block_size: int
    planes_of_codes: int
    head: int
    width: int | None = None

    @property
    def blocks(self) -> int:
        """How many; the last one is padded with zeros."""
        return -(-self.n // self.block_size)

    @property
    def begin(self) -> int:
        """The byte with which codes begin."""
        return SEED_BYTES + self.head

    @property
    def expected_bytes(self) -> int:
        """See `Payload.expected_bytes`."""
        return self.begin + self.planes_of_codes * self.block_size // 8 if self.n else 0

    def planes(self) -> Sequence[CodePlanes]:
        """See `Payload.planes`: where all blocks have one width."""
        if self.width is None or not self.n:
            return ()
        return (CodePlanes(self.begin, self.blocks * self.block_size, self.width),)

    def described(self) -> str:
        """See `Payload.described`."""
        return f"{self.n} coordinates in blocks of {self.block_size} with {self.planes_of_codes} planes of codes"


def write_seed(seed: int, device: torch.device) -> Tensor:
    """Eight bytes, little-endian, made where they are wanted: a copy to a GPU would make the host wait."""
    return torch.full((1,), signed(seed), dtype=torch.int64, device=device).view(torch.uint8)


def read_seeds(rows: Tensor) -> Tensor:
    """What `write_seed` wrote at the beginning of rows (W, bytes): int64 (W,)."""
    return rows[:, :SEED_BYTES].clone(memory_format=torch.contiguous_format).view(torch.int64).view(-1)


class Blocks(Compressor):
    """What compressors of blocks with widths of their own share: tables, and where a tensor may be cut."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._size: int = options.bucket_size
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}

    @property
    def unit(self) -> int:
        """Whole blocks."""
        return self._size

    def tables(self) -> tuple[Tensor, ...]:
        """What encoding and decoding read besides payloads, on the CPU; the first one: all centroids."""
        return (lloyd_max.table(),)

    def tensors_on(self, device: torch.device) -> Sequence[Tensor]:
        """See `Compressor.tensors_on`."""
        if device not in self._copies:
            self._copies[device] = tuple(table.to(device) for table in self.tables())
        return self._copies[device]

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        payload.check()
        return self.decode_mean(payload.buffer[None], payload)


class RotatedBlocks(Blocks):
    """What `eden` and `allocated` share where blocks are rotated: how their payloads are decoded."""

    @abstractmethod
    def read(self, rows: Tensor, like: BlockPayload) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows of payloads (W, bytes): scales float32, widths uint8 and first planes int64 of their blocks, (W, G)
        each."""

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Compressor.decode_mean`. Every row is rotated back by its own signs."""
        like.check(payloads)
        assert isinstance(like, BlockPayload)
        if not like.n:
            return torch.empty(0, dtype=like.dtype, device=payloads.device)
        scales, widths, begins = self.read(payloads, like)
        mean = eden.eden_decode_sum(
            payloads[:, like.begin :],
            scales,
            widths,
            begins,
            self.tensors_on(payloads.device)[0],
            like.n,
            self._size,
            read_seeds(payloads),
            like.offset,
            1.0 / len(payloads),
        )
        return cast(mean, like.dtype, like.offset)


class Eden(RotatedBlocks):
    """Blocks of one float32 scale each: S = |x|^2 / <R x, Q>, with which the error is orthogonal to x, so that what is
    decoded, S R^-1 Q, is unbiased over rotations drawn uniformly. Over those of one Hadamard matrix it is nearly so,
    but for vectors of a few large coordinates (docs/guide/methods.md). It loses D / (1 - D) of the energy, D the
    distortion of a standard normal variable: .571 .133 .0358 .0096 at 1 to 4 bits.

    A number of bits that is not whole mixes blocks of the two next to it.
    """

    @property
    def bits(self) -> float:
        """Of codes."""
        return float(getattr(self.options, "bits", 1))

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> BlockPayload:
        """See `Compressor.encode`: the worker's seed is that of the rotation, and travels."""
        x = flattened(self.name, tensor)
        like = self._template(x.numel(), tensor.dtype, offset, x.device)
        if not like.n:
            return like
        widths, begins = self._layout(like.blocks, x.device)
        norms = ops.bucket_norms(x, self._size, "l2")
        factors = torch.where(norms == 0, 0.0, 1.0 / norms.clamp(min=LEAST_NORM))
        codes, dots = eden.eden_encode(
            x,
            factors,
            widths,
            begins,
            self.tensors_on(x.device)[0],
            like.planes_of_codes,
            self._size,
            seed,
            offset,
        )
        scales = torch.where(norms == 0, 0.0, norms / dots)
        return replace(like, buffer=torch.cat([write_seed(seed, x.device), scales.view(torch.uint8), codes]))

    def read(self, rows: Tensor, like: BlockPayload) -> tuple[Tensor, Tensor, Tensor]:
        """See `RotatedBlocks.read`."""
        scales = floats(rows[:, SEED_BYTES : like.begin]).view(len(rows), -1)
        widths, begins = self._layout(like.blocks, rows.device)
        return scales, widths.expand_as(scales), begins.expand_as(scales)

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> BlockPayload:
        """Each block's scale times the factor that brings it nearest."""
        assert isinstance(payload, BlockPayload)
        buffer = payload.buffer.clone()
        part = buffer[SEED_BYTES : payload.begin]
        part.copy_((floats(part) * nearest_factors(corrected, decoded, self._size)).view(torch.uint8))
        return replace(payload, buffer=buffer)

    def _template(self, n: int, dtype: torch.dtype, offset: int, device: torch.device) -> BlockPayload:
        blocks, low, share = -(-n // self._size), *self._widths()
        planes = blocks * low + (blocks * share // _PARTS)
        width = None if share else low
        empty = torch.empty(0, dtype=torch.uint8, device=device)
        return BlockPayload(empty, n, dtype, offset, self._size, planes, 4 * blocks, width)

    def _widths(self) -> tuple[int, int]:
        """The lesser width, and how many of 65,536 blocks have one bit more."""
        low = int(np.floor(self.bits))
        return low, round((self.bits - low) * _PARTS)

    def _layout(self, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Widths and first planes of blocks, (G,) each: those of one bit more evenly among the others."""
        low, share = self._widths()
        more = torch.arange(blocks + 1, device=device) * share // _PARTS
        return (low + more[1:] - more[:-1]).to(torch.uint8), torch.arange(blocks, device=device) * low + more[:-1]
