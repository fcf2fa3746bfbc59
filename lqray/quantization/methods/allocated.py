"""Bits where the energy is: blocks of 64 coordinates, a norm of a byte each, and as many bits in a block's codes as
minimize the squared error at a fixed size, by reverse water-filling (Cover and Thomas, chapter 10). Within blocks:
EDEN, or a grid (`lqray.quantization.grids`)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lqray import ops
from lqray.experiment.options.budget import one_number
from lqray.experiment.options.quantizer import AllocatedOptions
from lqray.ops.allocation import block_norm_codes, block_norms, block_widths
from lqray.ops.eden import eden_encode
from lqray.quantization import allocation, lloyd_max
from lqray.quantization.codec import flattened
from lqray.quantization.eden import LEAST_NORM, SEED_BYTES, BlockPayload, RotatedBlocks, read_seeds, write_seed
from lqray.quantization.grids import AllocatedGrids
from lqray.quantization.payload import Payload


class AllocatedEden(RotatedBlocks):
    """EDEN within blocks. A payload: the seed of the rotation (8 bytes), the largest norm's exponent in eighths
    (int32), a byte for each block's norm, filled up to a multiple of 4, then as many planes of codes as `bits`
    leaves."""

    options: AllocatedOptions

    def __init__(self, options: AllocatedOptions) -> None:
        super().__init__(options)
        self._exponent = 0.5 if options.exponent is None else options.exponent

    def tables(self) -> tuple[Tensor, ...]:
        """See `RotatedBlocks.tables`: centroids; of norms the edges, dithers and scales; which code gets the next bit;
        what widths are multiplied by."""
        factors = allocation.unbiasing(self._size) / self._size
        norms = allocation.edges(), allocation.dithers(), allocation.scales()
        return lloyd_max.table(), *norms, allocation.order_of(self._exponent), factors

    def fingerprint(self) -> bytes:
        """See `Compressor.fingerprint`: all tables."""
        return b"".join(table.numpy().tobytes() for table in self.tables())

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> BlockPayload:
        """See `Compressor.encode`: the worker's seed is that of the rotation, and travels."""
        x = flattened(self.name, tensor)
        like = self._template(x.numel(), tensor.dtype, offset, x.device)
        if not like.n:
            return like
        table, edges, dithers, scales, order, _ = self.tensors_on(x.device)
        norms = ops.bucket_norms(x, self._size, "l2")
        largest, codes, sent = block_norm_codes(norms, edges, dithers, scales, seed, offset)
        widths, begins = block_widths(codes[None], order, like.planes_of_codes)
        factors = torch.where(sent == 0, 0.0, 1.0 / sent.clamp(min=LEAST_NORM))
        found, _ = eden_encode(x, factors, widths[0], begins[0], table, like.planes_of_codes, self._size, seed, offset)
        head = [write_seed(seed, x.device), allocation.write_norms(largest, codes)]
        return replace(like, buffer=torch.cat([*head, found]))

    def read(self, rows: Tensor, like: BlockPayload) -> tuple[Tensor, Tensor, Tensor]:
        """See `RotatedBlocks.read`."""
        _, _, _, scales, order, factors = self.tensors_on(rows.device)
        largest, codes = allocation.read_norms(rows[:, SEED_BYTES:], like.blocks)
        widths, begins = block_widths(codes, order, like.planes_of_codes)
        norms = block_norms(codes, largest, scales, read_seeds(rows), like.offset)
        return norms * factors[widths.to(torch.int64)], widths, begins

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """As it is: a norm of a byte cannot be brought nearer."""
        return payload

    def _template(self, n: int, dtype: torch.dtype, offset: int, device: torch.device) -> BlockPayload:
        blocks = -(-n // self._size)
        head = allocation.head_bytes(blocks)
        left = math.floor(one_number(self.options.bits) * n) - 8 * (SEED_BYTES + head)
        planes = max(blocks, left // self._size)
        return BlockPayload(
            torch.empty(0, dtype=torch.uint8, device=device), n, dtype, offset, self._size, planes, head
        )


def allocated(options: AllocatedOptions) -> AllocatedEden | AllocatedGrids:
    """The compressor that the option `inner` names."""
    return AllocatedEden(options) if options.inner == "eden" else AllocatedGrids(options)


METHOD = allocated
