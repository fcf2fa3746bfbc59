"""Bits where the energy is, without a rotation: what `allocated` is where its blocks' coordinates become places on a
grid from minus to plus the block's largest magnitude. Exactly unbiased. See `lqray.ops.grids`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lqray import ops
from lqray.experiment.options.budget import one_number
from lqray.experiment.options.quantizer import AllocatedOptions
from lqray.ops.allocation import block_widths
from lqray.ops.grids import Noise, ceiling_codes, ceilings, grid_decode_sum, grid_encode
from lqray.quantization import allocation, linf_slopes
from lqray.quantization.codec import cast, flattened
from lqray.quantization.eden import BlockPayload, Blocks
from lqray.quantization.payload import Payload
from lqray.quantization.place import PHASE_BYTES, SHARED_SEED, Place, read_phases, write_phase

_SHORT = 4096
"""Coordinates of a tensor below which its largest norm, padding and phase come on top of its bits: they would leave
every block one bit, with which error feedback grows."""
_DITHER = tuple((2 / (2**bits - 1)) ** 2 / 12 for bits in range(1, 9))
LOSSES = {"rounding": linf_slopes.ROUNDING, "dither": _DITHER, "slopes": linf_slopes.VARIANCE}
"""Mean squared error of a coordinate over its block's norm, at 1, 2, ... bits."""


@dataclass(frozen=True)
class GridPayload(BlockPayload):
    """Codes of blocks: the buffer holds `head` bytes of norms, a phase where the decoder is to know the noise, then
    planes of codes.

    phase_bytes: of the phase, 0 where there is none. stream: seed of the random stream that it is a phase of, which
    receivers know.
    """

    phase_bytes: int = 0
    stream: int = SHARED_SEED

    @property
    def begin(self) -> int:
        """See `BlockPayload.begin`."""
        return self.head + self.phase_bytes


class AllocatedGrids(Blocks):
    """See the module. A payload: the largest norm's exponent in eighths (int32), a byte for each block's norm, filled
    up to a multiple of 4, the phase of the worker (4 bytes; not with `inner: rounding`), then as many planes of codes
    as `bits` leaves."""

    options: AllocatedOptions
    unbiased = True

    def __init__(self, options: AllocatedOptions) -> None:
        super().__init__(options)
        self._exponent = 0.5 if options.exponent is None else options.exponent
        self._dithered = options.inner != "rounding"

    def tables(self) -> tuple[Tensor, ...]:
        """See `Blocks.tables`: scales of norms; which code gets the next bit; levels and their slopes, if any."""
        order = allocation.order_of(self._exponent, LOSSES[self.options.inner])
        grid = (linf_slopes.levels(), linf_slopes.slopes()) if self.options.inner == "slopes" else ()
        return allocation.ceiling_scales(), order, *grid

    def fingerprint(self) -> bytes:
        """See `Compressor.fingerprint`: all tables."""
        return b"".join(table.numpy().tobytes() for table in self.tables())

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> GridPayload:
        """See `Compressor.encode`."""
        return self.encode_at(tensor, Place(), seed=seed, offset=offset)

    def encode_at(self, tensor: Tensor, place: Place, *, seed: int, offset: int) -> GridPayload:
        """See `Compressor.encode_at`. Where the decoder knows the noise, all workers have phases of one stream; else
        theirs is correlated where `place` says so."""
        x = flattened(self.name, tensor)
        like = self._template(x.numel(), tensor.dtype, offset, place.shared_seed, x.device)
        if not like.n:
            return like
        scales, order, *grid = self.tensors_on(x.device)
        largest, codes, norms = ceiling_codes(ops.bucket_norms(x, self._size, "linf"), scales)
        widths, begins = block_widths(codes[None], order, like.planes_of_codes)
        noise = self._noise(place, seed, offset)
        found = grid_encode(x, norms, widths[0], begins[0], *self._pair(grid), like.planes_of_codes, self._size, noise)
        phase = [write_phase(noise.phase, x.device)] if self._dithered else []
        return replace(like, buffer=torch.cat([allocation.write_norms(largest, codes), *phase, found]))

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Compressor.decode_mean`."""
        like.check(payloads)
        assert isinstance(like, GridPayload)
        if not like.n:
            return torch.empty(0, dtype=like.dtype, device=payloads.device)
        scales, order, *grid = self.tensors_on(payloads.device)
        largest, codes = allocation.read_norms(payloads, like.blocks)
        widths, begins = block_widths(codes, order, like.planes_of_codes)
        mean = grid_decode_sum(
            payloads[:, like.begin :],
            ceilings(codes, largest, scales),
            widths,
            begins,
            read_phases(payloads[:, like.head : like.begin]) if self._dithered else None,
            *self._pair(grid),
            like.n,
            self._size,
            like.stream,
            like.offset,
            1.0 / len(payloads),
        )
        return cast(mean, like.dtype, like.offset)

    def _noise(self, place: Place, seed: int, offset: int) -> Noise:
        if self._dithered:
            return Noise(place.shared_seed, offset, place.phase(seed))
        if place.correlated and place.workers > 1:
            return Noise(seed, offset, 0, place.shared_seed, place.worker, place.workers)
        return Noise(seed, offset)

    @staticmethod
    def _pair(grid: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        return (grid[0], grid[1]) if grid else (None, None)

    def _template(self, n: int, dtype: torch.dtype, offset: int, stream: int, device: torch.device) -> GridPayload:
        blocks = -(-n // self._size)
        head, phase = allocation.head_bytes(blocks), PHASE_BYTES if self._dithered else 0
        whole = one_number(self.options.bits) * n
        if n < _SHORT:
            planes = max(blocks, math.ceil((whole - 8 * blocks) / self._size))
        else:
            planes = max(blocks, (math.floor(whole) - 8 * (head + phase)) // self._size)
        empty = torch.empty(0, dtype=torch.uint8, device=device)
        return GridPayload(empty, n, dtype, offset, self._size, planes, head, phase_bytes=phase, stream=stream)
