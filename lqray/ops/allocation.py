"""Operators of what stands before the codes of blocks: a byte for each block's norm, and widths that follow from them.

Both sides compute widths from the norms' bytes, in integers, so that no width travels. Schemas, typed wrappers and the
reference in torch, which native kernels match to the bit: docs/wire-format.md, "Rotated blocks".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lqray.ops.checks import check_memory, signed
from lqray.ops.reference import philox

NOT_A_NUMBER = 255
MOST_NORM = 254
STEPS = 8
"""Norm codes of a doubling."""
DITHERS = 32
NOTHING = -(2**20)
"""The exponent of what has none, among those of norms."""
_DITHER_SEED = 0x6469746865
_EXPONENT_BIAS = 127

_library = torch.library.Library("lqray", "FRAGMENT")
_library.define(
    "block_norm_codes(Tensor norms, Tensor edges, Tensor dithers, Tensor scales, int seed, int offset) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define("block_norms(Tensor codes, Tensor largest, Tensor scales, Tensor seeds, int offset) -> Tensor")
_library.define("block_widths(Tensor codes, Tensor order, int planes) -> (Tensor, Tensor)")


def block_norm_codes(
    norms: Tensor, edges: Tensor, dithers: Tensor, scales: Tensor, seed: int, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Norms (G,) float32 as (the largest one's exponent in eighths, int32 (1,); codes, uint8 (G,); what codes stand
    for, float32 (G,), as of `block_norms`).

    Code 0: zero; 255: NaN; else the norm times 2**(i / 256), i of [0, 32) drawn for each block with `seed` and
    `offset`, is at least 2**((code - 254 + largest) / 8), and less than a step of 2**(1/8) beyond. What is below the
    least of 254 codes has code 1. edges: mantissas at which the next code begins, int32 (7,). dithers: 2**(i / 256),
    float32 (32,). scales: as of `block_norms`.
    """
    check_memory("block_norm_codes", norms=norms, edges=edges, dithers=dithers, scales=scales)
    return torch.ops.lqray.block_norm_codes(norms, edges, dithers, scales, signed(seed), signed(offset))  # type: ignore[no-any-return]


def block_norms(codes: Tensor, largest: Tensor, scales: Tensor, seeds: Tensor, offset: int) -> Tensor:
    """What norm codes (W, G) uint8 stand for, float32 (W, G): 0 for code 0, NaN for 255, else the middle of the step
    less the dither, so that the norm over it has the same distribution whatever the norm is.

    largest: int32 (W,). scales: float32 (32, 8), of every dither and step. seeds: int64 (W,), signed.
    """
    check_memory("block_norms", codes=codes, largest=largest, scales=scales, seeds=seeds)
    return torch.ops.lqray.block_norms(codes, largest, scales, seeds, signed(offset))  # type: ignore[no-any-return]


def block_widths(codes: Tensor, order: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """Widths of blocks, uint8 (W, G), and their first planes, int64 (W, G), of norm codes (W, G) uint8.

    Every block that is not zero has one bit. The others go, one at a time and to all blocks of a code at once, where
    `order` says, until the next ones would be more than `planes`: of those the first blocks get theirs. order: int64
    (2, P): codes, ascending in width for each, and the widths before. planes: at least G.
    """
    check_memory("block_widths", codes=codes, order=order)
    if planes < codes.shape[-1]:
        raise ValueError(
            f"block_widths: planes is {planes}; allowed: at least one for each of {codes.shape[-1]} blocks"
        )
    return torch.ops.lqray.block_widths(codes, order, planes)  # type: ignore[no-any-return]


def _drawn(blocks: int, seed: int, offset: int, device: torch.device) -> Tensor:
    calls = torch.arange(-(-blocks // 4), device=device)
    return philox(calls, seed ^ _DITHER_SEED, offset).T.reshape(-1)[:blocks] >> 27


def _norm_codes(
    norms: Tensor, edges: Tensor, dithers: Tensor, scales: Tensor, seed: int, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    drawn = _drawn(norms.numel(), seed, offset, norms.device)
    known = norms.nan_to_num(nan=0.0)
    bits = (known * dithers[drawn]).view(torch.int32)
    eighths = STEPS * ((bits >> 23) - _EXPONENT_BIAS) + torch.bucketize(bits & 0x7FFFFF, edges, right=True)
    largest, codes = norm_codes(norms, eighths)
    return largest, codes, _meant(codes, largest, scales, drawn)


def norm_codes(norms: Tensor, eighths: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of the exponents `eighths` (G,) of norms (G,), int32 (1,), 0 where no norm has one; the norms' codes
    beside it, uint8 (G,)."""
    known = norms > 0  # not of NaN
    eighths = torch.where(known, eighths, NOTHING).to(torch.int32)
    largest = eighths.amax(dim=0, keepdim=True) if eighths.numel() else eighths.new_full((1,), NOTHING)
    codes = (MOST_NORM + eighths - largest).clamp(min=1)
    codes = torch.where(known, codes, 0).masked_fill(norms.isnan(), NOT_A_NUMBER).to(torch.uint8)
    return torch.where(largest > NOTHING, largest, 0).to(torch.int32), codes


def _norms(codes: Tensor, largest: Tensor, scales: Tensor, seeds: Tensor, offset: int) -> Tensor:
    rows = [
        _meant(row, one, scales, _drawn(row.numel(), seed, offset, codes.device))
        for row, one, seed in zip(codes, largest, seeds.tolist(), strict=True)
    ]
    return torch.stack(rows)


def _meant(codes: Tensor, largest: Tensor, scales: Tensor, drawn: Tensor) -> Tensor:
    return norms_meant(codes, largest, lambda step: scales[drawn, step])


def norms_meant(codes: Tensor, largest: Tensor, scale_of: Callable[[Tensor], Tensor]) -> Tensor:
    """What norm codes stand for beside the largest exponent: float32 of their shape. scale_of: step -> its scale, of
    int64 of that shape from 0 to 7."""
    eighths = codes.to(torch.int64) - MOST_NORM + largest.to(torch.int64)
    power = torch.div(eighths, STEPS, rounding_mode="floor")
    half = torch.div(power, 2, rounding_mode="floor")  # two factors: a subnormal norm is beyond one power of float32
    values = scale_of(eighths - STEPS * power) * power_of_two(half) * power_of_two(power - half)
    return torch.where(codes == 0, 0.0, values).masked_fill(codes == NOT_A_NUMBER, torch.nan)


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent, float32, of integers from -126 to 127, and the nearest of those for others."""
    return ((exponent.clamp(-126, 127) + _EXPONENT_BIAS) << 23).to(torch.int32).view(torch.float32)


def _widths(codes: Tensor, order: Tensor, planes: int) -> tuple[Tensor, Tensor]:
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
    partly = torch.where(step < order.shape[1], order[0][step.clamp(max=order.shape[1] - 1)], -1)
    at = codes == partly
    more = at & (at.cumsum(dim=1) <= budget - taken)
    widths = per_code.gather(1, codes) + more
    return widths.to(torch.uint8), widths.cumsum(dim=1) - widths


REFERENCES: dict[str, Callable[..., Any]] = {
    "block_norm_codes": _norm_codes,
    "block_norms": _norms,
    "block_widths": _widths,
}
"""By operator."""
for _name, _function in REFERENCES.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("lqray::block_norm_codes", lib=_library)
def _(
    norms: Tensor, edges: Tensor, dithers: Tensor, scales: Tensor, seed: int, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.empty_like(norms, dtype=torch.uint8)
    return norms.new_empty(1, dtype=torch.int32), codes, torch.empty_like(norms)


@torch.library.register_fake("lqray::block_norms", lib=_library)
def _(codes: Tensor, largest: Tensor, scales: Tensor, seeds: Tensor, offset: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.register_fake("lqray::block_widths", lib=_library)
def _(codes: Tensor, order: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(codes), torch.empty_like(codes, dtype=torch.int64)
