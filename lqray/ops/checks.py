"""What every operator asks of its arguments, whoever serves it.

Each function raises ValueError, which names the operator, what was found and what is allowed. csrc/bind.h asks the same
of those who call the native kernels directly.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

MOST_COORDINATES = 2**48
"""More than any memory holds, and few enough that no size computed from it overflows 64 bits."""
MOST_OF_A_BUCKET = 2**30
"""Coordinates of a bucket or of a Hadamard block."""

_FLOAT32_MAX = torch.finfo(torch.float32).max


def norm_bytes(n: int, bucket_size: int) -> int:
    """Bytes of the norms of a payload: a float32 for each bucket."""
    check_coordinates("norm_bytes", n)
    check_bucket_size("norm_bytes", bucket_size)
    return 4 * -(-n // bucket_size)


def code_bytes(n: int, bits: int) -> int:
    """Bytes of the codes of a payload: `bits` uint32 words for each group of 32 coordinates."""
    check_coordinates("code_bytes", n)
    check_bits("code_bytes", bits)
    return 4 * bits * -(-n // 32)


def check_coordinates(op: str, n: int) -> None:
    """n: a number of coordinates."""
    if not 0 <= n <= MOST_COORDINATES:
        raise ValueError(f"{op}: n is {n}; allowed: 0 to 2**48 coordinates")


def check_bits(op: str, bits: int) -> None:
    """bits: planes of a code."""
    if not 1 <= bits <= 8:
        raise ValueError(f"{op}: bits is {bits}; allowed: 1 to 8")


def check_bucket_size(op: str, bucket_size: int) -> None:
    """bucket_size: coordinates of a bucket."""
    if type(bucket_size) is float or not 1 <= bucket_size <= MOST_OF_A_BUCKET:
        raise ValueError(f"{op}: bucket_size is {bucket_size}; allowed: at least 1 and at most 2**30")


def check_dense(op: str, name: str, tensor: Tensor) -> None:
    """tensor: one number after the other, whatever its shape and wherever they are."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{op}: {name} is a {type(tensor).__name__}; allowed: a tensor")
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else f"{tensor.layout}"
        raise ValueError(f"{op}: {name} is a tensor of {tensor.dtype}, {kind}; allowed: a dense one (`to_dense()`)")


def check_memory(op: str, **tensors: Tensor | None) -> None:
    """tensors: dense, with numbers. What computes with shapes alone calls torch.ops.lqray, or has fake tensors."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check_dense(op, name, tensor)
            if tensor.device.type == "meta" and type(tensor) is Tensor:
                raise ValueError(f"{op}: {name} is on the device meta, without numbers; allowed: a tensor in memory")


def check_input(op: str, x: Tensor, bucket_size: int) -> None:
    """x: what is encoded or looked at."""
    check_dense(op, "x", x)
    if x.dim() != 1 or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{op}: x is {_shown(x)}; allowed: one dimension of float32, float16 or bfloat16, dense")
    check_coordinates(op, x.numel())
    check_bucket_size(op, bucket_size)


def check_rotated(op: str, x: Tensor, bucket_size: int) -> None:
    """x: what is rotated in its buckets, padded to whole ones, and then encoded."""
    check_input(op, x, bucket_size)
    if bucket_size & (bucket_size - 1):
        raise ValueError(f"{op}: bucket_size is {bucket_size}; allowed: a power of two")


def check_norm(op: str, norm: str) -> None:
    """norm: its name."""
    if norm not in ("l2", "linf", "rms"):
        raise ValueError(f"{op}: norm is {norm!r}; allowed: 'l2', 'linf', 'rms'")


def check_levels(op: str, levels: Tensor, bits: int, beside: Tensor) -> None:
    """levels: (L,) on the device of `beside`. That they increase is seen on the CPU only: a GPU would have to wait."""
    check_bits(op, bits)
    check_dense(op, "levels", levels)
    if levels.dtype != torch.float32 or levels.dim() != 1 or not 2 <= levels.numel() <= 2**bits:
        raise ValueError(
            f"{op}: levels is {_shown(levels)}; allowed: torch.float32 of shape (L,) with 2 <= L <= {2**bits}"
        )
    _check_device(op, "levels", levels, beside)
    if levels.device.type == "cpu" and type(levels) is Tensor and not torch.compiler.is_compiling():
        values = levels.tolist()
        if not (
            all(one < after for one, after in itertools.pairwise(values)) and math.isfinite(values[-1] - values[0])
        ):
            raise ValueError(f"{op}: levels is {values}; allowed: finite numbers that increase strictly")


def check_norms(op: str, norms: Tensor, x: Tensor, bucket_size: int) -> None:
    """norms: of the buckets of x."""
    buckets = -(-x.numel() // bucket_size)
    check_dense(op, "norms", norms)
    if norms.dtype != torch.float32 or norms.dim() != 1 or norms.numel() != buckets:
        raise ValueError(
            f"{op}: norms is {_shown(norms)}; allowed: torch.float32 of shape ({buckets},), one norm for each bucket"
        )
    _check_device(op, "norms", norms, x)


def check_payload(op: str, payload: Tensor, n: int, bits: int, bucket_size: int, dimensions: int) -> None:
    """payload: norms and codes of n coordinates, or at least one row of such."""
    check_coordinates(op, n)
    check_bits(op, bits)
    check_bucket_size(op, bucket_size)
    size = norm_bytes(n, bucket_size) + code_bytes(n, bits)
    check_dense(op, "payload", payload)
    if payload.dtype != torch.uint8 or payload.dim() != dimensions:
        raise ValueError(f"{op}: payload is {_shown(payload)}; allowed: torch.uint8 of {dimensions} dimensions, dense")
    if payload.shape[-1] != size:
        raise ValueError(
            f"{op}: payload has {payload.shape[-1]} bytes, of shape {tuple(payload.shape)}; allowed: torch.uint8 with "
            f"{size} bytes, which is what n={n}, bits={bits}, bucket_size={bucket_size} make"
        )
    if payload.shape[0] == 0 and dimensions == 2:
        raise ValueError(f"{op}: payload has no row; allowed: at least one")


def check_phase(op: str, phase: int) -> None:
    """phase: of a worker, of a random stream that others know."""
    if not 0 <= phase < 2**32:
        raise ValueError(f"{op}: phase is {phase}; allowed: an unsigned 32-bit integer")


def check_codes(op: str, codes: Tensor, bits: int) -> None:
    """codes: one in each byte. That each is below 2**bits is not looked at."""
    check_bits(op, bits)
    _check_bytes(op, "codes", codes)


def check_planes(op: str, codes: Tensor, n: int, bits: int) -> None:
    """codes: the bit planes of n codes."""
    check_coordinates(op, n)
    check_bits(op, bits)
    check_dense(op, "codes", codes)
    size = code_bytes(n, bits)
    if codes.dtype != torch.uint8 or codes.shape != (size,):
        raise ValueError(
            f"{op}: codes is {_shown(codes)}; allowed: torch.uint8 of ({size},), which n={n}, bits={bits} make"
        )


def check_stream(op: str, stream: Tensor, n: int, bits: int) -> None:
    """stream: bytes, of n entropy-coded codes or not."""
    check_coordinates(op, n)
    check_bits(op, bits)
    _check_bytes(op, "stream", stream)


def check_sum(op: str, scale: float, add: Tensor | None, beside: Tensor, n: int) -> None:
    """What a sum of payloads `beside` is multiplied by, and added to."""
    if not abs(scale) <= _FLOAT32_MAX:
        raise ValueError(f"{op}: scale is {scale}; allowed: a finite float32")
    if add is not None:
        check_dense(op, "add", add)
        if add.dtype != torch.float32 or add.dim() != 1 or add.numel() != n:
            raise ValueError(f"{op}: add is {_shown(add)}; allowed: torch.float32 of shape ({n},)")
        _check_device(op, "add", add, beside)


def check_blocks(op: str, x: Tensor, block_size: int) -> None:
    """x: whole blocks of a Hadamard transform."""
    check_dense(op, "x", x)
    if x.dim() != 1 or x.dtype != torch.float32:
        raise ValueError(f"{op}: x is {_shown(x)}; allowed: one dimension of float32, dense")
    check_coordinates(op, x.numel())
    whole = type(block_size) is not float
    if not (whole and 1 <= block_size <= MOST_OF_A_BUCKET) or block_size & (block_size - 1) or x.numel() % block_size:
        raise ValueError(
            f"{op}: block_size is {block_size} for {x.numel()} coordinates; allowed: a power of two that divides their "
            "number, at most 2**30"
        )


def check_blocks_of_widths(
    op: str, n: int, block_size: int, centroids: Tensor, numbers: Tensor, widths: Tensor, begins: Tensor
) -> None:
    """numbers, widths, begins: as of `check_widths`, on one device with the centroids."""
    check_widths(op, n, block_size, "factors", numbers, widths, begins)
    check_table_of_widths(op, "centroids", centroids, numbers)


def check_widths(op: str, n: int, block_size: int, name: str, numbers: Tensor, widths: Tensor, begins: Tensor) -> None:
    """numbers, called `name`, widths, begins: (W, G), of the G blocks that n coordinates make, on one device."""
    check_coordinates(op, n)
    if type(block_size) is float or not 32 <= block_size <= 8192 or block_size & (block_size - 1):
        raise ValueError(f"{op}: block_size is {block_size}; allowed: a power of two from 32 to 8192")
    blocks = -(-n // block_size)
    for called, tensor, dtype in (
        (name, numbers, torch.float32),
        ("widths", widths, torch.uint8),
        ("begins", begins, torch.int64),
    ):
        check_dense(op, called, tensor)
        if tensor.dtype != dtype or tensor.dim() != 2 or tensor.shape != (numbers.shape[0], blocks):
            raise ValueError(f"{op}: {called} is {_shown(tensor)}; allowed: {dtype}, one for each of {blocks} blocks")
        _check_device(op, called, tensor, numbers)


def check_table_of_widths(op: str, name: str, table: Tensor, beside: Tensor) -> None:
    """table: 2**b numbers for each width b of 1 to 8, those of b from 2**b - 2 on."""
    check_dense(op, name, table)
    if table.dtype != torch.float32 or table.shape != (510,):
        raise ValueError(f"{op}: {name} is {_shown(table)}; allowed: torch.float32 of shape (510,)")
    _check_device(op, name, table, beside)


def signed(value: int) -> int:
    """An unsigned 64-bit integer as the signed one of equal bits, which is what operator schemas carry."""
    if not 0 <= value < 2**64:
        raise ValueError(f"seed and offset are unsigned 64-bit integers; found {value}")
    return value - 2**64 if value >= 2**63 else value


def _check_bytes(op: str, name: str, tensor: Tensor) -> None:
    check_dense(op, name, tensor)
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError(f"{op}: {name} is {_shown(tensor)}; allowed: torch.uint8 of 1 dimension")
    check_coordinates(op, tensor.numel())


def _check_device(op: str, name: str, tensor: Tensor, beside: Tensor) -> None:
    if tensor.device != beside.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}; allowed: {beside.device}, where the data are")


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
