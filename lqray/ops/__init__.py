"""The torch operators of lqray: schemas, fakes and typed wrappers.

Every operator has a reference in torch (`reference.py`), registered as its default for every device. Native libraries,
where they are built, add faster kernels for CPU and CUDA tensors with the same results; nothing above this room knows
which one ran. The wire format and the arithmetic are described in docs/wire-format.md.

All tensors of codes are uint8 and hold bit planes; `bits` is the number of planes; `levels` is float32, strictly
increasing, with at most 2**bits elements. `seed` and `offset` are unsigned 64-bit integers. A tensor has at most 2**48
coordinates, a bucket at most 2**30. Whoever calls torch.ops.lqray directly meets the same checks, as RuntimeError where
a native kernel serves, and may give tensors of the device meta, of which shapes come back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lqray.ops import native, reference
from lqray.ops.checks import (
    check_blocks,
    check_input,
    check_levels,
    check_memory,
    check_norm,
    check_norms,
    check_payload,
    check_rotated,
    check_sum,
    code_bytes,
    norm_bytes,
    signed,
)
from lqray.ops.coding import pack, rans_decode, rans_encode, unpack
from lqray.ops.slopes import correlated_encode, slopes_decode_sum, slopes_encode

__all__ = [
    "bucket_norms",
    "bucket_statistics",
    "check_memory",
    "code_bytes",
    "correlated_encode",
    "decode",
    "decode_sum",
    "encode",
    "encode_fused",
    "encode_rotated",
    "hadamard",
    "loaded",
    "native",
    "norm_bytes",
    "pack",
    "rans_decode",
    "rans_encode",
    "slopes_decode_sum",
    "slopes_encode",
    "unpack",
]

_library = torch.library.Library("lqray", "DEF")
_library.define("bucket_norms(Tensor x, int bucket_size, str norm) -> Tensor")
_library.define(
    "encode(Tensor x, Tensor norms, Tensor levels, int bits, int bucket_size, int seed, int offset) -> Tensor"
)
_library.define(
    "encode_fused(Tensor x, Tensor levels, int bits, int bucket_size, str norm, int seed, int offset) -> Tensor"
)
_library.define(
    "encode_rotated(Tensor x, Tensor levels, int bits, int bucket_size, str norm, int seed, int offset, int rotation)"
    " -> Tensor"
)
_library.define("decode(Tensor payload, Tensor levels, int n, int bits, int bucket_size) -> Tensor")
_library.define(
    "decode_sum(Tensor payloads, Tensor levels, int n, int bits, int bucket_size, float scale, Tensor? add=None)"
    " -> Tensor"
)
_library.define("bucket_statistics(Tensor x, int bucket_size, str norm) -> (Tensor, Tensor, Tensor)")
_library.define("hadamard(Tensor x, int block_size, int seed, int offset, bool inverse) -> Tensor")

_DEFAULT = "CompositeExplicitAutograd"
_library.impl("bucket_norms", reference.bucket_norms, _DEFAULT)
_library.impl("encode", reference.encode, _DEFAULT)
_library.impl("encode_fused", reference.encode_fused, _DEFAULT)
_library.impl("encode_rotated", reference.encode_rotated, _DEFAULT)
_library.impl("decode", reference.decode, _DEFAULT)
_library.impl("decode_sum", reference.decode_sum, _DEFAULT)
_library.impl("bucket_statistics", reference.bucket_statistics, _DEFAULT)
_library.impl("hadamard", reference.hadamard, _DEFAULT)

loaded = native.load()
native.watch_devices(_library, loaded.cuda)


def bucket_norms(x: Tensor, bucket_size: int, norm: str) -> Tensor:
    """Norm of each bucket of `bucket_size` consecutive coordinates; the last bucket may be short.

    x: (n,) float32, float16 or bfloat16. norm: "l2", "linf", or "rms", which is sqrt(bucket_size) times the root mean
    square: "l2" but for a short last bucket of two coordinates or more. Returns (ceil(n / bucket_size),) float32; a
    bucket with a NaN or an infinity in it, or whose norm exceeds float32, has norm NaN.
    Raises ValueError for another dtype, shape, norm or bucket size.
    """
    check_memory("bucket_norms", x=x)
    check_input("bucket_norms", x, bucket_size)
    check_norm("bucket_norms", norm)
    return torch.ops.lqray.bucket_norms(x, bucket_size, norm)  # type: ignore[no-any-return]


def encode(x: Tensor, norms: Tensor, levels: Tensor, bits: int, bucket_size: int, seed: int, offset: int) -> Tensor:
    """Stochastic rounding of x / norm to levels, packed as bit planes.

    x: (n,) float32, float16 or bfloat16. norms: (ceil(n / bucket_size),) float32.
    levels: (L,) float32, 2 <= L <= 2**bits.
    seed, offset: key and upper counter half of Philox4x32-10. Returns (code_bytes(n, bits),) uint8.
    Raises ValueError for shapes, dtypes or numbers outside these.
    """
    check_memory("encode", x=x, norms=norms, levels=levels)
    check_input("encode", x, bucket_size)
    check_levels("encode", levels, bits, x)
    check_norms("encode", norms, x, bucket_size)
    return torch.ops.lqray.encode(x, norms, levels, bits, bucket_size, signed(seed), signed(offset))  # type: ignore[no-any-return]


def encode_fused(x: Tensor, levels: Tensor, bits: int, bucket_size: int, norm: str, seed: int, offset: int) -> Tensor:
    """`bucket_norms` and `encode` into one payload: norms (float32 little-endian), then codes.

    Returns (norm_bytes(n, bucket_size) + code_bytes(n, bits),) uint8. Arguments and errors as in those two.
    """
    check_memory("encode_fused", x=x, levels=levels)
    check_input("encode_fused", x, bucket_size)
    check_norm("encode_fused", norm)
    check_levels("encode_fused", levels, bits, x)
    return torch.ops.lqray.encode_fused(x, levels, bits, bucket_size, norm, signed(seed), signed(offset))  # type: ignore[no-any-return]


def encode_rotated(
    x: Tensor, levels: Tensor, bits: int, bucket_size: int, norm: str, seed: int, offset: int, rotation: int
) -> Tensor:
    """`hadamard`, keyed by `rotation`, of x in float32, padded with zeros to whole buckets, and `encode_fused` of what
    comes of it.

    bucket_size: a power of two. Returns the payload of the padded coordinates. Other arguments and errors as in those
    two.
    """
    check_memory("encode_rotated", x=x, levels=levels)
    check_rotated("encode_rotated", x, bucket_size)
    check_norm("encode_rotated", norm)
    check_levels("encode_rotated", levels, bits, x)
    keys = signed(seed), signed(offset), signed(rotation)
    return torch.ops.lqray.encode_rotated(x, levels, bits, bucket_size, norm, *keys)  # type: ignore[no-any-return]


def decode(payload: Tensor, levels: Tensor, n: int, bits: int, bucket_size: int) -> Tensor:
    """norm * level of every coordinate of a payload.

    payload: (norm_bytes + code_bytes,) uint8. Returns (n,) float32. A code beyond the last level decodes as the last
    level. Raises ValueError when the payload's length is not what n, bits and bucket_size make it.
    """
    check_memory("decode", payload=payload, levels=levels)
    check_payload("decode", payload, n, bits, bucket_size, 1)
    check_levels("decode", levels, bits, payload)
    return torch.ops.lqray.decode(payload, levels, n, bits, bucket_size)  # type: ignore[no-any-return]


def decode_sum(
    payloads: Tensor, levels: Tensor, n: int, bits: int, bucket_size: int, scale: float, add: Tensor | None = None
) -> Tensor:
    """Sum of W decoded payloads times `scale`, added up in float32 in the order of the rows, and that added to `add`.

    payloads: (W, norm_bytes + code_bytes) uint8, W >= 1. add: (n,) float32 or None. Returns a new (n,) float32.
    Raises as `decode`, and for an `add` of another shape or dtype.
    """
    check_memory("decode_sum", payload=payloads, levels=levels, add=add)
    check_payload("decode_sum", payloads, n, bits, bucket_size, 2)
    check_levels("decode_sum", levels, bits, payloads)
    check_sum("decode_sum", scale, add, payloads, n)
    return torch.ops.lqray.decode_sum(payloads, levels, n, bits, bucket_size, scale, add)  # type: ignore[no-any-return]


def bucket_statistics(x: Tensor, bucket_size: int, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, mean and deviation of each bucket: three float64 tensors (ceil(n / bucket_size),).

    The norm as of `bucket_norms` but for its last float32 bits; mean and standard deviation (ddof = 1; 0 for a bucket
    of one) of the coordinates divided by it, 0 where it is 0, NaN where it is NaN. Raises as `bucket_norms`.
    """
    check_memory("bucket_statistics", x=x)
    check_input("bucket_statistics", x, bucket_size)
    check_norm("bucket_statistics", norm)
    return torch.ops.lqray.bucket_statistics(x, bucket_size, norm)  # type: ignore[no-any-return]


def hadamard(x: Tensor, block_size: int, seed: int, offset: int, inverse: bool = False) -> Tensor:
    """Randomized Walsh-Hadamard transform H D of each block, orthonormal; the inverse is D H (cf. EDEN, Vargaftik et
    al. 2022).

    x: (n,) float32, n a multiple of block_size, which is a power of two. D: random signs, a bit of
    Philox4x32-10 each, of key `seed` and upper counter half `offset` (docs/wire-format.md). Returns (n,) float32.
    Raises ValueError for another dtype, shape or block size.
    """
    check_memory("hadamard", x=x)
    check_blocks("hadamard", x, block_size)
    return torch.ops.lqray.hadamard(x, block_size, signed(seed), signed(offset), inverse)  # type: ignore[no-any-return]


@torch.library.register_fake("lqray::bucket_norms", lib=_library)
def _(x: Tensor, bucket_size: int, norm: str) -> Tensor:
    check_input("bucket_norms", x, bucket_size)
    check_norm("bucket_norms", norm)
    return x.new_empty(-(-x.numel() // bucket_size), dtype=torch.float32)


@torch.library.register_fake("lqray::encode", lib=_library)
def _(x: Tensor, norms: Tensor, levels: Tensor, bits: int, bucket_size: int, seed: int, offset: int) -> Tensor:
    check_input("encode", x, bucket_size)
    check_levels("encode", levels, bits, x)
    check_norms("encode", norms, x, bucket_size)
    return x.new_empty(code_bytes(x.numel(), bits), dtype=torch.uint8)


@torch.library.register_fake("lqray::encode_fused", lib=_library)
def _(x: Tensor, levels: Tensor, bits: int, bucket_size: int, norm: str, seed: int, offset: int) -> Tensor:
    check_input("encode_fused", x, bucket_size)
    check_norm("encode_fused", norm)
    check_levels("encode_fused", levels, bits, x)
    return x.new_empty(norm_bytes(x.numel(), bucket_size) + code_bytes(x.numel(), bits), dtype=torch.uint8)


@torch.library.register_fake("lqray::encode_rotated", lib=_library)
def _(
    x: Tensor, levels: Tensor, bits: int, bucket_size: int, norm: str, seed: int, offset: int, rotation: int
) -> Tensor:
    check_rotated("encode_rotated", x, bucket_size)
    check_norm("encode_rotated", norm)
    check_levels("encode_rotated", levels, bits, x)
    n = -(-x.numel() // bucket_size) * bucket_size
    return x.new_empty(norm_bytes(n, bucket_size) + code_bytes(n, bits), dtype=torch.uint8)


@torch.library.register_fake("lqray::decode", lib=_library)
def _(payload: Tensor, levels: Tensor, n: int, bits: int, bucket_size: int) -> Tensor:
    check_payload("decode", payload, n, bits, bucket_size, 1)
    check_levels("decode", levels, bits, payload)
    return payload.new_empty(n, dtype=torch.float32)


@torch.library.register_fake("lqray::decode_sum", lib=_library)
def _(
    payloads: Tensor, levels: Tensor, n: int, bits: int, bucket_size: int, scale: float, add: Tensor | None = None
) -> Tensor:
    check_payload("decode_sum", payloads, n, bits, bucket_size, 2)
    check_levels("decode_sum", levels, bits, payloads)
    check_sum("decode_sum", scale, add, payloads, n)
    return payloads.new_empty(n, dtype=torch.float32)


@torch.library.register_fake("lqray::bucket_statistics", lib=_library)
def _(x: Tensor, bucket_size: int, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    check_input("bucket_statistics", x, bucket_size)
    check_norm("bucket_statistics", norm)
    buckets = -(-x.numel() // bucket_size)
    return (
        x.new_empty(buckets, dtype=torch.float64),
        x.new_empty(buckets, dtype=torch.float64),
        x.new_empty(buckets, dtype=torch.float64),
    )


@torch.library.register_fake("lqray::hadamard", lib=_library)
def _(x: Tensor, block_size: int, seed: int, offset: int, inverse: bool) -> Tensor:
    check_blocks("hadamard", x, block_size)
    return x.new_empty(x.numel())
