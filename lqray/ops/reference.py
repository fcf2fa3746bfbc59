"""The operators in plain torch: slow, on any device, and the definition that native kernels must match to the bit.

Arithmetic is float32, each operation rounded once (no contraction), exactly as docs/wire-format.md pins it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lqray.ops.checks import (
    check_blocks,
    check_input,
    check_levels,
    check_norm,
    check_norms,
    check_payload,
    check_rotated,
    check_sum,
)

_MASK = 0xFFFFFFFF
_TINY = 2.0**-64
_LIFT = 2.0**100
_PART = 2**18
_LANES = 32
_CHUNK = 1024
_LEAST_SQUARES = 2.0**-60
_MOST_SQUARES = 2.0**120


def bucket_norms(x: Tensor, bucket_size: int, norm: str) -> Tensor:
    """See `lqray.ops.bucket_norms`. Squares are summed in an order that every backend keeps; where the sum may have
    under- or overflowed, once more after the bucket was scaled by a power of two."""
    check_input("bucket_norms", x, bucket_size)
    check_norm("bucket_norms", norm)
    buckets = rows(x.to(torch.float32), bucket_size)
    if buckets.numel() == 0:
        return x.new_empty(0, dtype=torch.float32)
    norms = largest = buckets.abs().amax(dim=1)
    if norm != "linf":
        up = (largest.view(torch.int32) >> 23).clamp(1, 253)  # the exponent, biased by 127, as its bits have it
        scaled = buckets * ((254 - up) << 23).view(torch.float32)[:, None]
        rescaled = _root(blocked_sums(scaled * scaled)) * (up << 23).view(torch.float32)
        squares = blocked_sums(buckets * buckets)
        suffice = (squares >= _LEAST_SQUARES) & (squares <= _MOST_SQUARES)
        norms = torch.where(suffice, _root(squares), rescaled)
    if norm == "rms":
        norms[-1] *= of_short(x.numel(), bucket_size)
    return torch.where(norms.isfinite(), norms, torch.nan)


def of_short(n: int, bucket_size: int) -> float:
    """What makes the l2 norm of the last bucket of n coordinates sqrt(bucket_size) times their root mean square: a
    float32; 1 where the bucket is full, or has one coordinate, which is a level."""
    left = n % bucket_size
    return float(np.float32(math.sqrt(bucket_size / left))) if left > 1 else 1.0


def _root(values: Tensor) -> Tensor:
    """The correctly rounded root of float32, which torch's own is not everywhere; that of float64, rounded, is."""
    return values.to(torch.float64).sqrt().to(torch.float32)


def blocked_sums(values: Tensor) -> Tensor:
    """Sums of rows of float32 that are at least 0: (rows, width) to (rows,), added as docs/wire-format.md has it."""
    rows, width = values.shape
    if width > _CHUNK:
        values = torch.nn.functional.pad(values, (0, -width % _CHUNK))
        return blocked_sums(blocked_sums(values.reshape(-1, _CHUNK)).reshape(rows, -1))
    lanes = min(_LANES, 1 << (width - 1).bit_length())  # those beyond would hold zeros alone
    parts = torch.nn.functional.pad(values, (0, -width % lanes)).reshape(rows, -1, lanes)
    sums = parts[:, 0]
    for part in range(1, parts.shape[1]):
        sums = sums + parts[:, part]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def bucket_statistics(x: Tensor, bucket_size: int, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """See `lqray.ops.bucket_statistics`. Sums in float32; buckets for which those may under- or overflow, or cancel
    (a mean that is large beside the deviation), are done again in float64."""
    check_input("bucket_statistics", x, bucket_size)
    check_norm("bucket_statistics", norm)
    buckets = rows(x.to(torch.float32), bucket_size)
    if buckets.numel() == 0:
        return tuple(x.new_empty(0, dtype=torch.float64) for _ in range(3))  # type: ignore[return-value]
    # A part at a time on the CPU: the passes over it after the first find it in the cache.
    parts = buckets.split(max(1, _PART // bucket_size)) if x.device.type == "cpu" else (buckets,)
    passes = [(torch.linalg.vector_norm(part, dim=1), part.sum(dim=1), _largest(part, norm)) for part in parts]
    roots, sums, largest = (torch.cat(column).to(torch.float64) for column in zip(*passes, strict=True))
    largest = largest if norm == "linf" else roots
    counts = torch.full_like(roots, bucket_size)
    counts[-1] = x.numel() - (roots.numel() - 1) * bucket_size
    deviations = _sum_of_squared_deviations(roots, sums, counts)
    unsure = ~((roots > 1e-15) & (roots < 1e15) & (deviations > 0.01 * roots.square()))
    if unsure.any():
        exact = buckets[unsure].to(torch.float64)
        sums[unsure] = exact.sum(dim=1)
        roots[unsure] = exact.square().sum(dim=1).sqrt()
        padded = torch.arange(buckets.shape[1], device=x.device) >= counts[unsure, None]
        centered = (exact - (sums / counts)[unsure, None]).masked_fill(padded, 0.0)
        deviations[unsure] = centered.square().sum(dim=1)
        largest = largest if norm == "linf" else roots
    norms = largest.to(torch.float32)
    if norm == "rms":
        norms[-1] *= of_short(x.numel(), bucket_size)
    norms = norms.to(torch.float64)
    finite = norms.isfinite() & roots.isfinite()
    norms = torch.where(finite, norms, torch.nan)
    sigmas = (deviations / (counts - 1).clamp(min=1)).sqrt()
    divisor = torch.where(norms == 0, torch.ones_like(norms), norms)
    return norms, sums / counts / divisor, sigmas / divisor


def _largest(rows: Tensor, norm: str) -> Tensor:
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1)) if norm == "linf" else rows.new_empty(0)


def _sum_of_squared_deviations(roots: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    return (roots.square() - sums.square() / counts).clamp(min=0.0)


def hadamard(x: Tensor, block_size: int, seed: int, offset: int, inverse: bool) -> Tensor:
    """See `lqray.ops.hadamard`."""
    check_blocks("hadamard", x, block_size)
    if x.numel() == 0:
        return x.clone()
    turned = signs(x.numel(), seed, offset, x.device)
    rows = (x if inverse else x * turned).reshape(-1, block_size)
    half = 1
    while half < block_size:
        pairs = rows.reshape(-1, block_size // (2 * half), 2, half)
        upper, lower = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack([upper + lower, upper - lower], dim=2).reshape(-1, block_size)
        half *= 2
    rows = rows.reshape(-1) * torch.tensor(block_size**-0.5, dtype=torch.float32)
    return rows * turned if inverse else rows


def encode(x: Tensor, norms: Tensor, levels: Tensor, bits: int, bucket_size: int, seed: int, offset: int) -> Tensor:
    """See `lqray.ops.encode`."""
    check_input("encode", x, bucket_size)
    check_levels("encode", levels, bits, x)
    check_norms("encode", norms, x, bucket_size)
    n = x.numel()
    if n == 0:
        return x.new_empty(0, dtype=torch.uint8)
    r = normalized(x, norms, bucket_size)
    low = (r[:, None] >= levels[1:-1]).sum(dim=1)
    below = levels[low]
    gap = levels[low + 1] - below
    up = uniforms(n, seed, offset, x.device) * gap < r - below
    return pack(low + up, bits)


def normalized(x: Tensor, norms: Tensor, bucket_size: int) -> Tensor:
    """r = x / norm of coordinates (n,), n >= 1, clamped to [-1, 1]: float32 (n,)."""
    lifts, inverse = scales(norms)
    buckets = rows(x.to(torch.float32), bucket_size) * lifts[:, None]
    return (buckets * inverse[:, None]).clamp(-1.0, 1.0).reshape(-1)[: x.numel()]


def scales(norms: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors for each norm, float32, by which coordinates are divided: an exact power of two, 1 unless the norm is
    tiny, and the inverse of the norm times that, 0 for the norm 0."""
    lifts = torch.ones_like(norms).masked_fill((norms < _TINY) & (norms != 0), _LIFT)
    inverse = 1.0 / (norms * lifts)
    return lifts, torch.where(norms == 0, torch.zeros_like(inverse), inverse)


def encode_fused(x: Tensor, levels: Tensor, bits: int, bucket_size: int, norm: str, seed: int, offset: int) -> Tensor:
    """See `lqray.ops.encode_fused`."""
    norms = bucket_norms(x, bucket_size, norm)
    codes = encode(x, norms, levels, bits, bucket_size, seed, offset)
    return torch.cat([norms.view(torch.uint8), codes])


def encode_rotated(
    x: Tensor, levels: Tensor, bits: int, bucket_size: int, norm: str, seed: int, offset: int, rotation: int
) -> Tensor:
    """See `lqray.ops.encode_rotated`."""
    check_rotated("encode_rotated", x, bucket_size)
    check_levels("encode_rotated", levels, bits, x)
    check_norm("encode_rotated", norm)
    padded = torch.nn.functional.pad(x.to(torch.float32), (0, -x.numel() % bucket_size))
    rotated = hadamard(padded, bucket_size, rotation, offset, False)
    return encode_fused(rotated, levels, bits, bucket_size, norm, seed, offset)


def decode(payload: Tensor, levels: Tensor, n: int, bits: int, bucket_size: int) -> Tensor:
    """See `lqray.ops.decode`."""
    check_payload("decode", payload, n, bits, bucket_size, 1)
    check_levels("decode", levels, bits, payload)
    if n == 0:
        return payload.new_empty(0, dtype=torch.float32)
    split = 4 * -(-n // bucket_size)
    norms = payload[:split].clone(memory_format=torch.contiguous_format).view(torch.float32)
    codes = unpack(payload[split:], n, bits).to(torch.int64)
    values = rows(levels[codes.clamp(max=levels.numel() - 1)], bucket_size)
    return (norms[:, None] * values).reshape(-1)[:n]


def decode_sum(
    payloads: Tensor, levels: Tensor, n: int, bits: int, bucket_size: int, scale: float, add: Tensor | None = None
) -> Tensor:
    """See `lqray.ops.decode_sum`."""
    check_payload("decode_sum", payloads, n, bits, bucket_size, 2)
    check_levels("decode_sum", levels, bits, payloads)
    check_sum("decode_sum", scale, add, payloads, n)
    total = payloads.new_zeros(n, dtype=torch.float32)
    for payload in payloads:
        total += decode(payload, levels, n, bits, bucket_size)
    return total * scale if add is None else add + total * scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes, one integer for each coordinate, as bit planes: (n,) to (4 * bits * ceil(n / 32),) uint8."""
    groups = rows(codes.to(torch.int64), 32)
    planes = (groups[:, None, :] >> torch.arange(bits, device=codes.device)[None, :, None]) & 1
    words = (planes << torch.arange(32, device=codes.device)).sum(dim=2)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).reshape(-1).view(torch.uint8)


def unpack(codes: Tensor, n: int, bits: int) -> Tensor:
    """The inverse of `pack`: (4 * bits * ceil(n / 32),) uint8 to (n,) uint8."""
    words = codes.clone(memory_format=torch.contiguous_format).view(torch.int32).reshape(-1, bits).to(torch.int64)
    planes = (words[:, :, None] >> torch.arange(32, device=codes.device)) & 1
    values = (planes << torch.arange(bits, device=codes.device)[None, :, None]).sum(dim=1)
    return values.reshape(-1)[:n].to(torch.uint8)


def uniforms(n: int, seed: int, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """n float32 multiples of 2**-24 in [0, 1), of `words`."""
    return uniform(words(n, seed, offset, device))


def uniform(words: Tensor) -> Tensor:
    """The numbers (n,) float32 of words (n,) int64 that hold uint32."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def words(n: int, seed: int, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """n uint32 in int64: coordinate 256 t + 32 j + lane takes word j // 2 of the Philox call with counter (32 t + lane,
    offset), rotated by 16 bits when j is odd."""
    tiles = -(-n // 256)
    called = philox(torch.arange(32 * tiles, dtype=torch.int64, device=device), seed, offset)
    rotated = ((called << 16) | (called >> 16)) & _MASK
    by_lane = torch.stack([called, rotated], dim=1).reshape(8, tiles, 32)
    return by_lane.permute(1, 0, 2).reshape(-1)[:n]


def signs(n: int, seed: int, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """n signs, float32 1 or -1: that of coordinate 4096 t + 1024 m + 32 k + lane is - where bit k of word m of the
    Philox call with counter (32 t + lane, offset) is set: a call has those of 128 coordinates."""
    tiles = -(-n // 4096)
    words = philox(torch.arange(32 * tiles, dtype=torch.int64, device=device), seed, offset)
    bits = (words.reshape(4, tiles, 1, 32) >> torch.arange(32, device=device)[:, None]) & 1
    return 1.0 - 2.0 * bits.permute(1, 0, 2, 3).reshape(-1)[:n].to(torch.float32)


def philox(counter: Tensor, seed: int, offset: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011): counter (m,) int64, lower counter half -> (4, m) int64 holding uint32.

    seed: 64-bit key. offset: upper half of the 128-bit counter. Either may be given signed.
    """
    words = [counter & _MASK, (counter >> 32) & _MASK]
    words += [torch.full_like(counter, offset & _MASK), torch.full_like(counter, (offset >> 32) & _MASK)]
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        product0, product1 = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        words = [high1 ^ words[1] ^ key0, product1 & _MASK, high0 ^ words[3] ^ key1, product0 & _MASK]
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return torch.stack(words)


def rows(x: Tensor, width: int) -> Tensor:
    """x as rows of `width`, the last one padded with zeros. A single row is never padded beyond 2**20 for its own sake:
    a bucket far longer than x would not fit the memory."""
    width = min(width, max(x.numel(), 2**20))
    short = -x.numel() % width
    return torch.nn.functional.pad(x, (0, short)).reshape(-1, width) if short else x.reshape(-1, width)
