"""Operators of codes in rotated blocks whose widths differ: what `eden` and `allocated` are made of.

A block of d coordinates is multiplied by random signs and by the Walsh-Hadamard matrix, which makes its coordinates
near-normal, then by a factor, and each becomes the nearest of 2**b centroids. b, the block's width, is 0 to 8. Schemas,
typed wrappers and the reference in torch, which native kernels match to the bit: docs/wire-format.md, "Rotated blocks".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lqray.ops.checks import check_blocks_of_widths, check_dense, check_input, check_memory, signed
from lqray.ops.reference import blocked_sums, pack, signs, unpack

MOST_WIDTH = 8

_library = torch.library.Library("lqray", "FRAGMENT")
_library.define(
    "eden_encode(Tensor x, Tensor factors, Tensor widths, Tensor begins, Tensor centroids, int planes, int block_size, "
    "int seed, int offset) -> (Tensor, Tensor)"
)
_library.define(
    "eden_decode_sum(Tensor codes, Tensor scales, Tensor widths, Tensor begins, Tensor centroids, int n, "
    "int block_size, Tensor seeds, int offset, float scale) -> Tensor"
)


def eden_encode(
    x: Tensor,
    factors: Tensor,
    widths: Tensor,
    begins: Tensor,
    centroids: Tensor,
    planes: int,
    block_size: int,
    seed: int,
    offset: int,
) -> tuple[Tensor, Tensor]:
    """Codes of the nearest centroids of H D x times each block's factor, and what they have in common with it.

    x: (n,) float32, float16 or bfloat16, cut into G = ceil(n / block_size) blocks, the last padded with zeros. H: the
    Walsh-Hadamard matrix of entries 1 and -1, block_size a power of two from 32 to 8192. D: signs of key `seed` and
    upper counter half `offset`, as of `lqray.ops.hadamard`. factors: (G,) float32. widths: (G,) uint8, 0 to 8. begins:
    (G,) int64, the plane, of block_size / 8 bytes, with which each block's codes begin. centroids: (510,) float32, the
    2**b of width b ascending from 2**b - 2 on. Returns the codes, (planes * block_size / 8,) uint8, zero where no block
    has any, and the dot product of each block's coordinates with their centroids, (G,) float32, added up as norms are.
    Raises ValueError for shapes, dtypes or numbers outside these; CUDA kernels, which do not wait to see widths and
    begins, give a block that lies outside of the planes no codes and NaN.
    """
    check_memory("eden_encode", x=x, factors=factors, widths=widths, begins=begins, centroids=centroids)
    check_input("eden_encode", x, block_size)
    check_blocks_of_widths("eden_encode", x.numel(), block_size, centroids, factors[None], widths[None], begins[None])
    return torch.ops.lqray.eden_encode(  # type: ignore[no-any-return]
        x, factors, widths, begins, centroids, planes, block_size, signed(seed), signed(offset)
    )


def eden_decode_sum(
    codes: Tensor,
    scales: Tensor,
    widths: Tensor,
    begins: Tensor,
    centroids: Tensor,
    n: int,
    block_size: int,
    seeds: Tensor,
    offset: int,
    scale: float,
) -> Tensor:
    """Sum over W rows of D H c times each block's scale, c the centroids that codes stand for, times `scale`: (n,)
    float32, added up in the order of the rows.

    codes: (W, bytes) uint8. scales, widths, begins: (W, G), each row as of `eden_encode`. seeds: (W,) int64, of the
    rows' signs, as signed integers of the same bits. Raises ValueError for shapes, dtypes or numbers outside these, but
    as `eden_encode`: the CUDA kernels' sum is NaN there.
    """
    check_memory("eden_decode_sum", codes=codes, scales=scales, widths=widths, begins=begins, seeds=seeds)
    check_dense("eden_decode_sum", "codes", codes)
    check_blocks_of_widths("eden_decode_sum", n, block_size, centroids, scales, widths, begins)
    return torch.ops.lqray.eden_decode_sum(  # type: ignore[no-any-return]
        codes, scales, widths, begins, centroids, n, block_size, seeds, signed(offset), scale
    )


def _butterflies(rows: Tensor) -> Tensor:
    """Rows (G, d) times the Walsh-Hadamard matrix of entries 1 and -1; neighbours first."""
    block_size = rows.shape[1]
    half = 1
    while half < block_size:
        pairs = rows.reshape(-1, block_size // (2 * half), 2, half)
        upper, lower = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack([upper + lower, upper - lower], dim=2).reshape(-1, block_size)
        half *= 2
    return rows


def _encode(
    x: Tensor,
    factors: Tensor,
    widths: Tensor,
    begins: Tensor,
    centroids: Tensor,
    planes: int,
    block_size: int,
    seed: int,
    offset: int,
) -> tuple[Tensor, Tensor]:
    blocks, plane = factors.numel(), block_size // 8
    check_planes("eden_encode", widths, begins, planes)
    rows = torch.nn.functional.pad(x.to(torch.float32), (0, blocks * block_size - x.numel()))
    turned = signs(rows.numel(), seed, offset, x.device)
    rows = _butterflies((rows * turned).view(blocks, block_size)) * factors[:, None]
    codes = torch.zeros(planes, plane, dtype=torch.uint8, device=x.device)
    dots = torch.zeros(blocks, device=x.device)
    for width in range(1, MOST_WIDTH + 1):
        chosen = torch.nonzero(widths == width).view(-1)
        if not chosen.numel():
            continue
        own = centroids[2**width - 2 : 2 ** (width + 1) - 2]
        edges = (own[1:] + own[:-1]) * 0.5
        values = rows[chosen]
        found = torch.bucketize(values, edges, right=True).masked_fill(values.isnan(), 0)
        dots[chosen] = blocked_sums(values * own[found])
        packed = pack(found.view(-1), width).view(-1, plane)
        where = begins[chosen][:, None] + torch.arange(width, device=x.device)
        codes[where.view(-1)] = packed
    return codes.view(-1), dots


def _decode_sum(
    codes: Tensor,
    scales: Tensor,
    widths: Tensor,
    begins: Tensor,
    centroids: Tensor,
    n: int,
    block_size: int,
    seeds: Tensor,
    offset: int,
    scale: float,
) -> Tensor:
    blocks, plane = scales.shape[1], block_size // 8
    total = codes.new_zeros(blocks * block_size, dtype=torch.float32)
    for row, factors, wide, begin, seed in zip(codes, scales, widths, begins, seeds.tolist(), strict=True):
        check_planes("eden_decode_sum", wide, begin, row.numel() // plane)
        rows = codes.new_zeros(blocks, block_size, dtype=torch.float32)
        for width in range(1, MOST_WIDTH + 1):
            chosen = torch.nonzero(wide == width).view(-1)
            if not chosen.numel():
                continue
            where = begin[chosen][:, None] + torch.arange(width, device=codes.device)
            packed = row.view(-1, plane)[where.view(-1)].view(-1)
            found = unpack(packed, chosen.numel() * block_size, width).to(torch.int64)
            rows[chosen] = centroids[2**width - 2 + found].view(-1, block_size)
        turned = signs(total.numel(), seed, offset, codes.device)
        total += (_butterflies(rows) * factors[:, None]).view(-1) * turned
    return total[:n] * scale


def check_planes(op: str, widths: Tensor, begins: Tensor, planes: int) -> None:
    """widths, begins: of blocks whose codes lie within so many planes. Raises ValueError where they do not."""
    wide = widths.to(torch.int64)
    if wide.numel() and not bool(((wide <= MOST_WIDTH) & (begins >= 0) & (begins + wide <= planes)).all()):
        raise ValueError(f"{op}: blocks' codes lie outside of the {planes} planes that there are")


REFERENCES: dict[str, Callable[..., Any]] = {"eden_encode": _encode, "eden_decode_sum": _decode_sum}
"""By operator."""
for _name, _function in REFERENCES.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("lqray::eden_encode", lib=_library)
def _(
    x: Tensor,
    factors: Tensor,
    widths: Tensor,
    begins: Tensor,
    centroids: Tensor,
    planes: int,
    block_size: int,
    seed: int,
    offset: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(planes * block_size // 8, dtype=torch.uint8), torch.empty_like(factors)


@torch.library.register_fake("lqray::eden_decode_sum", lib=_library)
def _(
    codes: Tensor,
    scales: Tensor,
    widths: Tensor,
    begins: Tensor,
    centroids: Tensor,
    n: int,
    block_size: int,
    seeds: Tensor,
    offset: int,
    scale: float,
) -> Tensor:
    return codes.new_empty(n, dtype=torch.float32)
