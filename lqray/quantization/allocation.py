"""The tables by which bits are allocated to blocks, and by which their norms travel: see `lqray.ops.allocation`."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from lqray.ops.allocation import DITHERS, NOT_A_NUMBER, STEPS
from lqray.quantization.lloyd_max import MOST_BITS, centroids, relative_error

_QUADRATURE = 8192
_RATIOS = 64


@functools.cache
def edges() -> Tensor:
    """Mantissas at which the next norm code begins, int32 (7,): those of 2**(1/8), 2**(2/8), ..."""
    steps = torch.arange(1, STEPS, dtype=torch.float64) / STEPS
    return torch.exp2(steps).to(torch.float32).view(torch.int32) & 0x7FFFFF


@functools.cache
def dithers() -> Tensor:
    """What norms are multiplied by before they are rounded down: 2**(i / 256), float32 (32,)."""
    return torch.exp2(torch.arange(DITHERS, dtype=torch.float64) / (DITHERS * STEPS)).to(torch.float32)


@functools.cache
def scales() -> Tensor:
    """The middle of every step, less every dither: float32 (32, 8)."""
    steps = torch.arange(STEPS, dtype=torch.float64) / STEPS
    dither = torch.arange(DITHERS, dtype=torch.float64)[:, None] / DITHERS
    return torch.exp2(steps + (0.5 - dither) / STEPS).to(torch.float32)


@functools.cache
def ceiling_scales() -> Tensor:
    """2**(j / 8), float32 (8,), none less than that: see `lqray.ops.grids.ceiling_codes`."""
    exact = np.exp2(np.arange(STEPS) / STEPS)
    nearest = exact.astype(np.float32)
    return torch.from_numpy(np.where(nearest < exact, np.nextafter(nearest, np.float32(2)), nearest))


EDEN_LOSSES = tuple(relative_error(bits) for bits in range(1, MOST_BITS + 1))
"""Of a block's energy, at 1, 2, ... bits."""


@functools.cache
def order_of(exponent: float, losses: tuple[float, ...] = EDEN_LOSSES) -> Tensor:
    """Which norm code gets which bit next, int64 (2, P): (code, width before), by what a bit takes off the squared
    error: 4**(exponent code / 8) (e_b - e_{b+1}), e_b the loss at b bits. Widths of a code only grow."""
    gains = np.diff([-loss for loss in losses])
    codes, widths = np.meshgrid(np.arange(1, NOT_A_NUMBER + 1), np.arange(1, MOST_BITS), indexing="ij")
    # Rounded, so that all machines have one order: logarithms may differ in their last bit.
    worth = np.round(exponent * codes * 2 / STEPS + np.log2(gains)[widths - 1], 9).ravel()
    found = np.lexsort((codes.ravel(), widths.ravel(), -worth))
    return torch.from_numpy(np.stack([codes.ravel()[found], widths.ravel()[found]]))


@functools.cache
def unbiasing(block_size: int) -> Tensor:
    """float32 (9,): for each width what codes are multiplied by so that, over rotations and dithers, what is decoded
    is the block on average: coordinates of a unit vector drawn uniformly, times sqrt(d), are rounded after a factor of
    2**v, v uniform between -1/16 and 1/16."""
    factors = [0.0]
    v = np.exp2(((np.arange(_RATIOS) + 0.5) / _RATIOS - 0.5) / STEPS)
    angle = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE * np.pi
    z = np.cos(angle) * np.sqrt(block_size)
    weight = np.sin(angle) ** (block_size - 2)
    weight /= weight.sum()
    for bits in range(1, MOST_BITS + 1):
        own = centroids(bits)
        edges = (own[1:] + own[:-1]) / 2
        kept = [(weight * z * own[np.searchsorted(edges, z * ratio, side="right")]).sum() / ratio for ratio in v]
        factors.append(1 / float(np.mean(kept)))
    return torch.tensor(factors, dtype=torch.float64).to(torch.float32)


_LARGEST_BYTES = 4


def head_bytes(blocks: int) -> int:
    """Bytes of what `write_norms` writes."""
    return _LARGEST_BYTES + blocks + -blocks % 4


def write_norms(largest: Tensor, codes: Tensor) -> Tensor:
    """The largest exponent, int32 (1,), little-endian, norm codes (G,) uint8, and zeros up to a multiple of 4."""
    return torch.cat([largest.view(torch.uint8), codes, codes.new_zeros(-codes.numel() % 4)])


def read_norms(rows: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """What `write_norms` wrote at the beginning of rows (W, bytes): largest exponents, int32 (W,), and norm codes,
    uint8 (W, G)."""
    largest = rows[:, :_LARGEST_BYTES].clone(memory_format=torch.contiguous_format).view(torch.int32).view(-1)
    return largest, rows[:, _LARGEST_BYTES : _LARGEST_BYTES + blocks].contiguous()
