"""Where the bits of a payload go: norms of blocks in a byte each, and a width for each block that follows from them.

Both sides compute widths from the norms' bytes, in integers, so that no width travels. Everything here is torch on
whatever device the gradients are, without a number that the host waits for.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from lqray.ops.reference import philox
from lqray.quantization.lloyd_max import MOST_BITS, centroids, relative_error

NOT_A_NUMBER = 255
_MOST = 254
_STEPS = 8
"""Norm codes of a doubling."""
_DITHERS = 32
_DITHER_SEED = 0x6469746865
_EXPONENT_BIAS = 127
_QUADRATURE = 512


def norm_tables() -> tuple[Tensor, Tensor]:
    """(mantissas at which the next code begins, int32 (7,); scales, float32 (32, 8): of every dither and step)."""
    steps = torch.arange(_STEPS, dtype=torch.float64) / _STEPS
    edges = torch.exp2(steps[1:]).to(torch.float32).view(torch.int32) & 0x7FFFFF
    dithers = torch.arange(_DITHERS, dtype=torch.float64)[:, None] / _DITHERS
    return edges, torch.exp2(steps + (0.5 - dithers) / _STEPS).to(torch.float32)


def dither_table() -> Tensor:
    """What norms are multiplied by before they are rounded down: 2**(i / 256), float32 (32,)."""
    return torch.exp2(torch.arange(_DITHERS, dtype=torch.float64) / (_DITHERS * _STEPS)).to(torch.float32)


def dithers(blocks: int, seed: Tensor, offset: int) -> Tensor:
    """Numbers of [0, 32) for every block of rows of payloads, int64 (W, G), of the rows' seeds (W,)."""
    calls = torch.arange(-(-blocks // 4), device=seed.device)
    drawn = [philox(calls, one, offset).T.reshape(-1)[:blocks] for one in (seed ^ _DITHER_SEED).unbind()]
    return torch.stack(drawn) >> 27


def norm_codes(norms: Tensor, dithered: Tensor, edges: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (G,) float32 as (the largest one's exponent in eighths, int32 (1,); codes, uint8 (G,)).

    Code 0: zero; 255: NaN; else the norm, times 2**(dither / 256), is at least 2**((code - 254 + largest) / 8) and less
    than a step of 2**(1/8) beyond. dithered: of `dithers`, (G,). What is below the least of 254 codes has code 1.
    """
    known = norms.nan_to_num(nan=0.0)
    bits = (known * table[dithered]).view(torch.int32)
    eighths = _STEPS * ((bits >> 23) - _EXPONENT_BIAS) + torch.bucketize(bits & 0x7FFFFF, edges, right=True)
    eighths = torch.where(known > 0, eighths, -(2**20)).to(torch.int32)
    largest = eighths.amax(dim=0, keepdim=True)
    codes = (_MOST + eighths - largest).clamp(min=1)
    codes = torch.where(known > 0, codes, 0).masked_fill(norms.isnan(), NOT_A_NUMBER)
    return torch.where(largest > -(2**20), largest, 0).to(torch.int32), codes.to(torch.uint8)


def norms_of(codes: Tensor, largest: Tensor, dithered: Tensor, scales: Tensor) -> Tensor:
    """What codes (..., G) stand for: the middle of their step less the dither, float32; 0 for code 0, NaN for 255.

    The norm over it is the same distribution whatever the norm is: 2**v, v uniform between -1/16 and 1/16.
    """
    eighths = codes.to(torch.int64) - _MOST + largest
    power = torch.div(eighths, _STEPS, rounding_mode="floor")
    # Two factors, since a subnormal norm is no power of two that float32 has in one.
    half = torch.div(power, 2, rounding_mode="floor")
    values = scales[dithered, eighths - _STEPS * power] * _power_of_two(half) * _power_of_two(power - half)
    values = torch.where(codes == 0, 0.0, values)
    return values.masked_fill(codes == NOT_A_NUMBER, torch.nan)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent.clamp(-126, 127) + _EXPONENT_BIAS) << 23).to(torch.int32).view(torch.float32)


def widths_of(codes: Tensor, planes: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Widths of blocks, uint8 (W, G), and their first planes, int64 (W, G), of rows of norm codes (W, G).

    Every block that is not zero has one bit. The others go, one at a time and to all blocks of a code at once, where
    `order` says, until the next ones would be more than `planes`: of those the first blocks get theirs. order: of
    `order_of`, int64 (2, P). planes: at least G.
    """
    codes = codes.to(torch.int64)
    counts = torch.zeros(len(codes), 256, dtype=torch.int64, device=codes.device)
    counts.scatter_add_(1, codes, torch.ones_like(codes))
    budget = planes - (codes > 0).sum(dim=1, keepdim=True)
    wanted = counts[:, order[0]].cumsum(dim=1)
    whole = wanted <= budget
    per_code = (torch.arange(256, device=codes.device) > 0).to(torch.int64).repeat(len(codes), 1)
    per_code.scatter_add_(1, order[0].expand(len(codes), -1), whole.to(torch.int64))
    taken = torch.where(whole, wanted, 0).amax(dim=1, keepdim=True)
    step = whole.sum(dim=1, keepdim=True)  # the first that is not whole, if there is one
    there = step < order.shape[1]
    partly = torch.where(there, order[0][step.clamp(max=order.shape[1] - 1)], -1)
    at = codes == partly
    more = at & (at.cumsum(dim=1) <= budget - taken)
    widths = per_code.gather(1, codes) + more
    return widths.to(torch.uint8), widths.cumsum(dim=1) - widths


@functools.cache
def order_of(exponent: float) -> Tensor:
    """Which norm code gets which bit next, int64 (2, P): (code, width before), by what a bit takes off the squared
    error: 4**(exponent code / 8) (e_b - e_{b+1}), e_b the relative error at b bits. Widths of a code only grow."""
    gains = np.diff([-relative_error(bits) for bits in range(1, MOST_BITS + 1)])
    codes, widths = np.meshgrid(np.arange(1, NOT_A_NUMBER + 1), np.arange(1, MOST_BITS), indexing="ij")
    # Rounded, so that all machines have one order: logarithms may differ in their last bit.
    worth = np.round(exponent * codes / 4 + np.log2(gains)[widths - 1], 9).ravel()
    found = np.lexsort((codes.ravel(), widths.ravel(), -worth))
    return torch.from_numpy(np.stack([codes.ravel()[found], widths.ravel()[found]]))


@functools.cache
def unbiasing(block_size: int) -> Tensor:
    """float32 (9,): for each width what codes are multiplied by so that, over rotations and dithers, what is decoded is
    the block on average. Coordinates of a unit vector drawn uniformly, times sqrt(d), rounded after a factor of 2**v."""
    factors = [0.0]
    v = np.exp2((np.arange(64) + 0.5) / 64 / _STEPS - 1 / (2 * _STEPS))
    angle = (np.arange(_QUADRATURE * 16) + 0.5) / (_QUADRATURE * 16) * np.pi
    z = np.cos(angle) * np.sqrt(block_size)
    weight = np.sin(angle) ** (block_size - 2)
    weight /= weight.sum()
    for bits in range(1, MOST_BITS + 1):
        own = centroids(bits)
        edges = (own[1:] + own[:-1]) / 2
        kept = [(weight * z * own[np.searchsorted(edges, z * ratio, side="right")]).sum() / ratio for ratio in v]
        factors.append(1 / float(np.mean(kept)))
    return torch.tensor(factors, dtype=torch.float64).to(torch.float32)
