"""tensor <-> Payload: the bytes that travel.

A tensor may be clipped and rotated on its way to codes, and its last short bucket may travel as it is; see
docs/wire-format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lqray import ops
from lqray.quantization.entropy import Counts, entropy_bits, huffman_bits
from lqray.quantization.payload import CodePlanes, Payload, floats
from lqray.quantization.place import Place

# Every rank rotates by the same signs, else sums of what they decode would mean nothing: no rank's seed enters them.
# Every rank casts the same mean, and must get the same bits: nor does it enter the cast.
_ROTATION_SEED = 0x6C71726179
_CAST_SEED = 0x63617374
_CAST_BUCKET = 8192


@dataclass(frozen=True)
class Coding:
    """How a quantizer turns tensors into payloads. norm: of a bucket. rotate: by the randomized Hadamard transform.
    raw_tail: a last short bucket stays float32. clip: standard deviations of the tensor that it is clipped to."""

    bits: int
    bucket_size: int
    norm: Literal["l2", "linf", "rms"]
    rotate: bool = False
    raw_tail: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class LevelPayload(Payload):
    """Codes of levels: the buffer holds a float32 norm for each bucket, then `bits` bit planes of codes, then the
    float32 coordinates of an unquantized tail.

    bits: planes. bucket_size: coordinates of a bucket. tail: coordinates at the end that are not quantized. rotation:
    the offset that the signs of its rotation were drawn at, None where it was not rotated.
    """

    bits: int
    bucket_size: int
    tail: int = 0
    rotation: int | None = None

    @property
    def coded(self) -> int:
        """Coordinates that have a code: n without the tail; a rotation pads them to whole buckets."""
        head = self.n - self.tail
        return head if self.rotation is None else -(-head // self.bucket_size) * self.bucket_size

    @property
    def norm_bytes(self) -> int:
        """Bytes of norms, with which the buffer begins."""
        return ops.norm_bytes(self.coded, self.bucket_size)

    @property
    def head_bytes(self) -> int:
        """Bytes of norms and codes."""
        return self.norm_bytes + ops.code_bytes(self.coded, self.bits)

    @property
    def expected_bytes(self) -> int:
        """See `Payload.expected_bytes`."""
        return self.head_bytes + 4 * self.tail

    @property
    def norms(self) -> Tensor:
        """float32 norm of each bucket: (ceil(coded / bucket_size),). Raises ValueError for a buffer of wrong length."""
        self.check()
        return floats(self.buffer[: self.norm_bytes])

    @property
    def codes(self) -> Tensor:
        """uint8 code of each coded coordinate: (coded,). Raises ValueError for a buffer of wrong length."""
        self.check()
        planes = self.buffer[self.norm_bytes : self.head_bytes]
        return ops.unpack(planes, self.coded, self.bits)

    def planes(self) -> Sequence[CodePlanes]:
        """See `Payload.planes`."""
        return (CodePlanes(self.norm_bytes, self.coded, self.bits),)

    def described(self) -> str:
        """See `Payload.described`."""
        of_tail = f", the last {self.tail} of them in full precision" if self.tail else ""
        return f"{self.n} coordinates of {self.bits} bits in buckets of {self.bucket_size}{of_tail}"

    def check(self, rows: Tensor | None = None) -> None:
        """See `Payload.check`."""
        if not 0 <= self.tail <= self.n:
            raise ValueError(f"a payload of {self.n} coordinates has a tail of {self.tail}; allowed: 0 to {self.n}")
        super().check(rows)

    def entropy_bits(self) -> float:
        """Bits per coordinate of the tensor that its codes hold, -sum p_j log2 p_j over the codes' own frequencies; an
        unquantized tail counts 32 each, norms do not count."""
        return self._per_coordinate(entropy_bits(self._counts()))

    def huffman_bits(self) -> float:
        """As `entropy_bits`, of a Huffman code made for the codes' own frequencies: what the paper counts."""
        return self._per_coordinate(huffman_bits(self._counts()))

    def rescaled(self, corrected: Tensor, decoded: Tensor) -> LevelPayload:
        """The payload with each bucket's norm times <x, Q> / <Q, Q>, in [0, 1]: for an unbiased Q that is
        1 / (1 + omega) with the omega of this very rounding, and no other factor brings Q nearer to x. An unquantized
        tail stays. corrected: x, (n,). decoded: Q, (n,)."""
        coordinates = self.n - self.tail
        factors = nearest_factors(corrected[:coordinates], decoded[:coordinates], self.bucket_size)
        buffer = self.buffer.clone()
        buffer[: self.norm_bytes] = (self.norms * factors).view(torch.uint8)
        return replace(self, buffer=buffer)

    def _counts(self) -> Counts:
        return np.asarray(torch.bincount(self.codes, minlength=2**self.bits).cpu().numpy())

    def _per_coordinate(self, bits_per_code: float) -> float:
        return (bits_per_code * self.coded + 32.0 * self.tail) / self.n if self.n else 0.0


def nearest_factors(corrected: Tensor, decoded: Tensor, size: int) -> Tensor:
    """Of each bucket of `size` coordinates of x and q, (n,): the factor in [0, 1] that brings q nearest to x,
    <x, q> / <q, q>; 1 where there is none. float32 (ceil(n / size),)."""
    x, q = (
        torch.nn.functional.pad(each.to(torch.float64), (0, -each.numel() % size)).view(-1, size)
        for each in (corrected, decoded)
    )
    factors = (x * q).sum(dim=1) / q.square().sum(dim=1)
    return torch.where(factors.isfinite(), factors.clamp(0.0, 1.0), 1.0).to(torch.float32)


def encode(x: Tensor, levels: Tensor, coding: Coding, *, seed: int, offset: int) -> LevelPayload:
    """Encode a tensor of any shape and strides, row-major. Arguments and errors as in `lqray.ops.encode_fused`."""
    kind = levels, coding.bits, coding.bucket_size, coding.norm, seed, offset

    def code(head: Tensor) -> Tensor:
        return ops.encode_rotated(head, *kind, _ROTATION_SEED) if coding.rotate else ops.encode_fused(head, *kind)

    return _payload(x, coding, offset, code)


def encode_correlated(
    x: Tensor, levels: Tensor, coding: Coding, place: Place, *, seed: int, offset: int
) -> LevelPayload:
    """As `encode`, by one of at least two workers: see `lqray.ops.correlated_encode`."""
    kind = coding.bits, coding.bucket_size, coding.norm
    at = place.shared_seed, place.worker, place.workers
    return encode_with(x, coding, offset, lambda flat: ops.correlated_encode(flat, levels, *kind, seed, offset, *at))


def encode_with(x: Tensor, coding: Coding, offset: int, code: Callable[[Tensor], Tensor]) -> LevelPayload:
    """Encode a tensor of any shape and strides, row-major. code: of coordinates (coded,), clipped and rotated, their
    norms and codes."""
    return _payload(x, coding, offset, lambda head: code(rotate(head, coding, offset)))


def _payload(x: Tensor, coding: Coding, offset: int, code: Callable[[Tensor], Tensor]) -> LevelPayload:
    """code: of coordinates (n - tail,), clipped, their norms and codes."""
    head, tail = _split(flattened("encode", x), coding)
    buffer = code(head)
    if tail.numel():
        buffer = torch.cat([buffer, tail.to(torch.float32).contiguous().view(torch.uint8)])
    rotation = offset if coding.rotate else None
    return LevelPayload(buffer, x.numel(), x.dtype, offset, coding.bits, coding.bucket_size, tail.numel(), rotation)


def prepared(x: Tensor, coding: Coding, offset: int) -> tuple[Tensor, Tensor]:
    """What of x (n,) is rounded to levels, clipped and rotated, and its unquantized tail (n mod bucket_size,), which is
    empty where short buckets are quantized."""
    head, tail = _split(x, coding)
    return rotate(head, coding, offset), tail


def _split(x: Tensor, coding: Coding) -> tuple[Tensor, Tensor]:
    clipped = clip(x, coding)
    tail = clipped.numel() % coding.bucket_size if coding.raw_tail else 0
    head = clipped.numel() - tail
    return clipped[:head], clipped[head:]


def flattened(op: str, x: Tensor) -> Tensor:
    """A tensor of any shape and strides as (n,), row-major. Raises ValueError for what is no dense tensor of float32,
    float16 or bfloat16."""
    ops.check_memory(op, tensor=x)
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{op}: the tensor is {x.dtype}; allowed: float32, float16 or bfloat16")
    return x.detach().reshape(-1)


def decode(payload: LevelPayload, levels: Tensor) -> Tensor:
    """The (n,) tensor that a payload stands for, in its own dtype, as of `cast`. Raises ValueError for a payload of
    wrong length."""
    payload.check()
    head = payload.buffer[: payload.head_bytes]
    decoded = ops.decode(head, levels, payload.coded, payload.bits, payload.bucket_size)
    return assemble(decoded, floats(payload.buffer[payload.head_bytes :]), payload)


def decode_sum(payloads: Tensor, like: LevelPayload, levels: Tensor, scale: float) -> Tensor:
    """Sum of W decoded payloads times `scale`, added up in float32 in the order of the rows: (n,) in like's dtype, as
    of `cast`.

    payloads: (W, nbytes) uint8, W >= 1. like: one of them, for what their bytes mean. Raises ValueError for rows of
    wrong length.
    """
    like.check(payloads)
    heads = payloads[:, : like.head_bytes]
    total = ops.decode_sum(heads, levels, like.coded, like.bits, like.bucket_size, scale)
    return assemble(total, tail_sum(payloads, like, scale), like)


def tail_sum(payloads: Tensor, like: LevelPayload, scale: float) -> Tensor:
    """Sum of the unquantized tails of W payloads, rows of (W, nbytes), times `scale`: float32 (like.tail,)."""
    tail = payloads.new_zeros(like.tail, dtype=torch.float32)
    if like.tail:
        for row in payloads[:, like.head_bytes : like.head_bytes + 4 * like.tail]:
            tail += floats(row)
        tail *= scale
    return tail


def clip(x: Tensor, coding: Coding) -> Tensor:
    """x (n,) clipped to +-coding.clip standard deviations of its own; not at all where the deviation is 0."""
    if coding.clip is None or x.numel() == 0:
        return x
    sigma = x.to(torch.float32).std(correction=0)
    bound = torch.where(sigma == 0, torch.inf, coding.clip * sigma).to(x.dtype)
    return torch.minimum(torch.maximum(x, -bound), bound)


def rotate(x: Tensor, coding: Coding, offset: int) -> Tensor:
    """x (n,) as its buckets are encoded: unchanged, or padded to whole buckets and rotated, float32."""
    if not coding.rotate:
        return x
    padded = torch.nn.functional.pad(x.to(torch.float32), (0, -x.numel() % coding.bucket_size))
    return ops.hadamard(padded, coding.bucket_size, _ROTATION_SEED, offset)


def assemble(head: Tensor, tail: Tensor, payload: LevelPayload) -> Tensor:
    """The (n,) tensor, in the payload's dtype, of its decoded coordinates (payload.coded,), rotated back, and its
    unquantized ones (payload.tail,)."""
    if payload.rotation is not None:
        back = ops.hadamard(head, payload.bucket_size, _ROTATION_SEED, payload.rotation, inverse=True)
        head = back[: payload.n - payload.tail]
    return cast(torch.cat([head, tail]) if payload.tail else head, payload.dtype, payload.offset)


def cast(values: Tensor, dtype: torch.dtype, offset: int) -> Tensor:
    """float32 values (n,) in another dtype, stochastically rounded to a neighbour there: E[cast(v)] = v.

    What lies between two numbers of `dtype` becomes the one of larger magnitude where the coordinate's uniform number
    (`lqray.ops.encode`'s, with a seed of its own and `offset`) is below its share of the way there; no rank's seed
    enters, so that equal values are cast alike everywhere. A finite value beyond the largest of `dtype` becomes that
    one, which is biased: no finite bucket decodes to an infinity. Infinities and NaN stay. float32 stays as it is.
    """
    if dtype == torch.float32 or not values.numel():
        return values.to(dtype)
    near = values.to(dtype)
    beyond = near.to(torch.float32).abs() > values.abs()
    # Neighbours in magnitude are neighbours as integers, whatever the sign.
    toward_zero = near.view(torch.int16) - beyond.to(torch.int16)
    below, above = (pattern.view(dtype).to(torch.float32).abs() for pattern in (toward_zero, toward_zero + 1))
    away = _happens((values.abs() - below) / (above - below), offset)
    return (toward_zero + away.to(torch.int16)).view(dtype)


def _happens(probability: Tensor, offset: int) -> Tensor:
    """0.0 or 1.0 for each of (n,) probabilities, NaN counting as 0: their codes between the levels 0 and 1."""
    n, device = probability.numel(), probability.device
    norms = torch.ones(-(-n // _CAST_BUCKET), device=device)
    levels = torch.arange(2, dtype=torch.float32, device=device)
    codes = ops.encode(probability, norms, levels, 1, _CAST_BUCKET, _CAST_SEED, offset)
    return ops.decode(torch.cat([norms.view(torch.uint8), codes]), levels, n, 1, _CAST_BUCKET)
