"""Operators of blocks whose coordinates become places on a grid, with widths of their own: what `allocated` is made of
where it does not rotate.

A block's coordinates are divided by a number N that none of their magnitudes exceeds, and become codes of as many bits
as the block is wide, 0 to 8. The grid of b bits has 2**b places from -1 to 1. Uniform ones: code floor(y + u), of the
place y from 0 to 2**b - 1 that a coordinate has among them and of a uniform number u; a decoder that knows u takes
u - 1/2 back, which is subtractive dither, else it is stochastic rounding. Or levels with slopes, as of
`lqray.ops.slopes`. Schemas, typed wrappers and the reference in torch, which native kernels match to the bit:
docs/wire-format.md, "Blocks on grids".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.ops import reference
from lqray.ops.allocation import STEPS, norm_codes, norms_meant
from lqray.ops.checks import (
    check_dense,
    check_input,
    check_memory,
    check_phase,
    check_table_of_widths,
    check_widths,
    signed,
)
from lqray.ops.eden import MOST_WIDTH, check_planes
from lqray.ops.slopes import MOST_WORKERS, stratified_words

_MASK = 0xFFFFFFFF
_HALF = 2**23
_UNIT = 2.0**-24
_LEAST_NORMAL = 2.0**-126
_LIFT_BITS = 24
_FLOAT32_MAX = torch.finfo(torch.float32).max

_library = torch.library.Library("lqray", "FRAGMENT")
_library.define("ceiling_codes(Tensor norms, Tensor scales) -> (Tensor, Tensor, Tensor)")
_library.define("ceilings(Tensor codes, Tensor largest, Tensor scales) -> Tensor")
_library.define(
    "grid_encode(Tensor x, Tensor norms, Tensor widths, Tensor begins, Tensor? levels, Tensor? slopes, int planes, "
    "int block_size, int seed, int offset, int phase, int shared_seed, int worker, int workers) -> Tensor"
)
_library.define(
    "grid_decode_sum(Tensor codes, Tensor norms, Tensor widths, Tensor begins, Tensor? phases, Tensor? levels, "
    "Tensor? slopes, int n, int block_size, int seed, int offset, float scale) -> Tensor"
)


@dataclass(frozen=True)
class Noise:
    """Where the uniform numbers of an encoder come from: the stream of `seed` at `offset`, all unsigned 64-bit.

    phase: unsigned 32-bit, added to the stream's words. worker, workers: with 2 to 2**16 workers, correlated rounding
    by the worker of that number, whose strata are drawn from the stream of `shared_seed`, in place of a phase.
    """

    seed: int
    offset: int
    phase: int = 0
    shared_seed: int = 0
    worker: int = 0
    workers: int = 1


def ceiling_codes(norms: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norms (G,) float32 as (the largest one's exponent in eighths, int32 (1,); codes, uint8 (G,); what codes stand
    for, float32 (G,), as of `ceilings`).

    Code 0: zero; 255: NaN; else 254 less by how many eighths of a doubling the exponent is below the largest one, at
    least 1. The exponent of a norm is the least e with 2**(e / 8) at least that. scales: float32 (8,), of 2**(j / 8)
    rounded up.
    """
    check_memory("ceiling_codes", norms=norms, scales=scales)
    return torch.ops.lqray.ceiling_codes(norms, scales)  # type: ignore[no-any-return]


def ceilings(codes: Tensor, largest: Tensor, scales: Tensor) -> Tensor:
    """What norm codes (W, G) uint8 stand for, float32 (W, G): 0 for code 0, NaN for 255, else
    2**((code - 254 + largest) / 8), no less than the norm and at most the largest finite number. largest: int32 (W,).
    scales: as of `ceiling_codes`.
    """
    check_memory("ceilings", codes=codes, largest=largest, scales=scales)
    return torch.ops.lqray.ceilings(codes, largest, scales)  # type: ignore[no-any-return]


def grid_encode(
    x: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    levels: Tensor | None,
    slopes: Tensor | None,
    planes: int,
    block_size: int,
    noise: Noise,
) -> Tensor:
    """Codes of x / norms, (planes * block_size / 8,) uint8, zero where no block has any.

    x: (n,) float32, float16 or bfloat16, cut into G = ceil(n / block_size) blocks, the last padded with zeros.
    block_size: a power of two from 32 to 8192. norms: (G,) float32, no less than the largest magnitude of the block, 0
    where that is. widths: (G,) uint8, 0 to 8. begins: (G,) int64, the plane, of block_size / 8 bytes, with which each
    block's codes begin. levels, slopes: (510,) float32, those of width b from 2**b - 2 on, allowed as of
    `lqray.ops.slopes`; None for uniform levels. Raises ValueError for shapes, dtypes or numbers outside these.
    """
    check_memory("grid_encode", x=x, norms=norms, widths=widths, begins=begins, levels=levels, slopes=slopes)
    _check_encode(x, norms, widths, begins, levels, slopes, block_size, noise)
    numbers = signed(noise.seed), signed(noise.offset), noise.phase, signed(noise.shared_seed)
    return torch.ops.lqray.grid_encode(  # type: ignore[no-any-return]
        x, norms, widths, begins, levels, slopes, planes, block_size, *numbers, noise.worker, noise.workers
    )


def grid_decode_sum(
    codes: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    phases: Tensor | None,
    levels: Tensor | None,
    slopes: Tensor | None,
    n: int,
    block_size: int,
    seed: int,
    offset: int,
    scale: float,
) -> Tensor:
    """Sum over W rows of what codes stand for times each block's norm, times `scale`: (n,) float32, added up in the
    order of the rows.

    codes: (W, bytes) uint8. norms, widths, begins: (W, G), each row as of `grid_encode`. phases: (W,) int32, the bits
    of the rows' phases of the stream of `seed` and `offset`; None where the noise is not known. levels, slopes: as of
    `grid_encode`; they need phases. Raises ValueError for shapes, dtypes or numbers outside these.
    """
    check_memory("grid_decode_sum", codes=codes, norms=norms, widths=widths, begins=begins, phases=phases)
    check_dense("grid_decode_sum", "codes", codes)
    _check_decode(codes, norms, widths, begins, phases, levels, slopes, n, block_size)
    return torch.ops.lqray.grid_decode_sum(  # type: ignore[no-any-return]
        codes, norms, widths, begins, phases, levels, slopes, n, block_size, signed(seed), signed(offset), scale
    )


def _ceiling_codes(norms: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    known = norms.nan_to_num(nan=0.0)
    small = known < _LEAST_NORMAL
    bits = torch.where(small, known * 2.0**_LIFT_BITS, known).view(torch.int32)
    mantissas = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    eighths = STEPS * ((bits >> 23) - 127 - _LIFT_BITS * small) + torch.bucketize(mantissas, scales)
    largest, codes = norm_codes(norms, eighths)
    return largest, codes, _ceilings(codes[None], largest, scales)[0]


def _ceilings(codes: Tensor, largest: Tensor, scales: Tensor) -> Tensor:
    return norms_meant(codes, largest[:, None], lambda step: scales[step]).clamp(max=_FLOAT32_MAX)


def _grid_encode(
    x: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    levels: Tensor | None,
    slopes: Tensor | None,
    planes: int,
    block_size: int,
    seed: int,
    offset: int,
    phase: int,
    shared_seed: int,
    worker: int,
    workers: int,
) -> Tensor:
    blocks, plane = norms.numel(), block_size // 8
    check_planes("grid_encode", widths, begins, planes)
    coded = blocks * block_size
    if workers > 1:
        words = stratified_words(coded, seed, offset, shared_seed, worker, workers, x.device)
    else:
        words = (reference.words(coded, seed, offset, x.device) + phase) & _MASK
    lifts, inverses = reference.scales(norms)
    rows = torch.nn.functional.pad(x.to(torch.float32), (0, coded - x.numel())).view(blocks, block_size)
    rows, uniform = rows * lifts[:, None], reference.uniform(words).view(blocks, block_size)
    codes = torch.zeros(planes, plane, dtype=torch.uint8, device=x.device)
    for width, chosen in _by_width(widths):
        values, u, inverse = rows[chosen], uniform[chosen], inverses[chosen, None]
        if levels is None or slopes is None:
            half = (2**width - 1) * 0.5
            found = ((values * (inverse * half) + half) + u).clamp(0.0, 2.0 * half)
            found = found.nan_to_num(nan=0.0).to(torch.int64)
        else:
            own, tilted = (table[2**width - 2 : 2 ** (width + 1) - 2] for table in (levels, slopes))
            r = (values * inverse).clamp(max=1.0)
            low = torch.bucketize(r, own[1:-1], right=True).masked_fill(r.isnan(), 0)
            curve = ((tilted[:-1] - tilted[1:]) * 0.5)[low]
            found = low + (u * ((own[low + 1] - own[low]) + curve * (1.0 - u)) < r - own[low])
        where = begins[chosen][:, None] + torch.arange(width, device=x.device)
        codes[where.view(-1)] = reference.pack(found.view(-1), width).view(-1, plane)
    return codes.view(-1)


def _grid_decode_sum(
    codes: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    phases: Tensor | None,
    levels: Tensor | None,
    slopes: Tensor | None,
    n: int,
    block_size: int,
    seed: int,
    offset: int,
    scale: float,
) -> Tensor:
    blocks, plane = norms.shape[1], block_size // 8
    total = codes.new_zeros(blocks, block_size, dtype=torch.float32)
    words = None if phases is None else reference.words(blocks * block_size, seed, offset, codes.device)
    for number, row in enumerate(codes):
        check_planes("grid_decode_sum", widths[number], begins[number], row.numel() // plane)
        back = None
        if words is not None and phases is not None:
            turned = (words + phases[number].to(torch.int64)) & _MASK
            back = ((turned >> 8) - _HALF).to(torch.float32).view(blocks, block_size)
        for width, chosen in _by_width(widths[number]):
            where = begins[number][chosen][:, None] + torch.arange(width, device=codes.device)
            packed = row.view(-1, plane)[where.view(-1)].view(-1)
            found = reference.unpack(packed, chosen.numel() * block_size, width).view(-1, block_size).to(torch.int64)
            values = _values(found, width, None if back is None else back[chosen], levels, slopes)
            total[chosen] += norms[number][chosen, None] * values
    return total.view(-1)[:n] * scale


def _values(codes: Tensor, width: int, back: Tensor | None, levels: Tensor | None, slopes: Tensor | None) -> Tensor:
    """back: (u - 1/2) * 2**24 of the codes' coordinates, where it is known."""
    if levels is not None and slopes is not None and back is not None:
        at = 2**width - 2 + codes
        return levels[at] + (slopes * _UNIT)[at] * back
    half = codes.new_full((), (2**width - 1) * 0.5, dtype=torch.float32)
    places = codes.to(torch.float32) - half
    return (places if back is None else places - _UNIT * back) * (1.0 / half)


def _by_width(widths: Tensor) -> list[tuple[int, Tensor]]:
    """Of the widths that there are, but 0: which blocks have it."""
    found = [(width, torch.nonzero(widths == width).view(-1)) for width in range(1, MOST_WIDTH + 1)]
    return [(width, chosen) for width, chosen in found if chosen.numel()]


def _check_encode(
    x: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    levels: Tensor | None,
    slopes: Tensor | None,
    block_size: int,
    noise: Noise,
) -> None:
    op = "grid_encode"
    check_input(op, x, block_size)
    check_widths(op, x.numel(), block_size, "norms", norms[None], widths[None], begins[None])
    _check_levels(op, levels, slopes, norms)
    check_phase(op, noise.phase)
    if not (1 <= noise.workers <= MOST_WORKERS and 0 <= noise.worker < noise.workers):
        raise ValueError(
            f"{op}: worker {noise.worker} of {noise.workers}; allowed: 1 to {MOST_WORKERS} workers, counted from 0"
        )


def _check_decode(
    codes: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    phases: Tensor | None,
    levels: Tensor | None,
    slopes: Tensor | None,
    n: int,
    block_size: int,
) -> None:
    op = "grid_decode_sum"
    check_widths(op, n, block_size, "norms", norms, widths, begins)
    _check_levels(op, levels, slopes, norms)
    if phases is None:
        if levels is not None:
            raise ValueError(f"{op}: phases is None, of levels with slopes; allowed: int32, one for each row")
        return
    if phases.dtype != torch.int32 or phases.shape != codes.shape[:1] or phases.device != codes.device:
        raise ValueError(
            f"{op}: phases is {phases.dtype} of shape {tuple(phases.shape)} on {phases.device}; allowed: torch.int32 "
            f"of shape ({codes.shape[0]},) on {codes.device}, one for each row"
        )


def _check_levels(op: str, levels: Tensor | None, slopes: Tensor | None, beside: Tensor) -> None:
    if (levels is None) != (slopes is None):
        raise ValueError(f"{op}: one of levels and slopes is None; allowed: both, for uniform levels, or neither")
    for name, table in (("levels", levels), ("slopes", slopes)):
        if table is not None:
            check_table_of_widths(op, name, table, beside)


REFERENCES = {
    "ceiling_codes": _ceiling_codes,
    "ceilings": _ceilings,
    "grid_encode": _grid_encode,
    "grid_decode_sum": _grid_decode_sum,
}
"""By operator."""
for _name, _function in REFERENCES.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("lqray::ceiling_codes", lib=_library)
def _(norms: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.empty_like(norms, dtype=torch.uint8)
    return norms.new_empty(1, dtype=torch.int32), codes, torch.empty_like(norms)


@torch.library.register_fake("lqray::ceilings", lib=_library)
def _(codes: Tensor, largest: Tensor, scales: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.register_fake("lqray::grid_encode", lib=_library)
def _(
    x: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    levels: Tensor | None,
    slopes: Tensor | None,
    planes: int,
    block_size: int,
    seed: int,
    offset: int,
    phase: int,
    shared_seed: int,
    worker: int,
    workers: int,
) -> Tensor:
    return x.new_empty(planes * block_size // 8, dtype=torch.uint8)


@torch.library.register_fake("lqray::grid_decode_sum", lib=_library)
def _(
    codes: Tensor,
    norms: Tensor,
    widths: Tensor,
    begins: Tensor,
    phases: Tensor | None,
    levels: Tensor | None,
    slopes: Tensor | None,
    n: int,
    block_size: int,
    seed: int,
    offset: int,
    scale: float,
) -> Tensor:
    return codes.new_empty(n, dtype=torch.float32)
