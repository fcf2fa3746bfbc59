"""Bits and small integers as bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def bit_bytes(n: int) -> int:
    """Bytes of n bits."""
    return -(-n // 8)


def pack_bits(bits: Tensor) -> Tensor:
    """bool (n,) as uint8 (bit_bytes(n),): bit i is bit i % 8 of byte i // 8."""
    rows = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8)).view(-1, 8)
    return (rows << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack_bits`: bool (n,)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).reshape(-1)[:n].to(torch.bool)


def integer_bytes(k: int, width: int) -> int:
    """Bytes of k integers of `width` bits each."""
    return k * (width // 8) + (width % 8) * bit_bytes(k)


def pack_integers(values: Tensor, width: int) -> Tensor:
    """int64 (k,) below 2**width as uint8 (integer_bytes(k, width),): their low bytes as they are, all of the lowest
    first, then the bits that are left, plane after plane."""
    whole = [((values >> 8 * byte) & 0xFF).to(torch.uint8) for byte in range(width // 8)]
    planes = [pack_bits((values >> bit) & 1 == 1) for bit in range(width - width % 8, width)]
    return torch.cat([*whole, *planes, torch.empty(0, dtype=torch.uint8, device=values.device)])


def unpack_integers(packed: Tensor, k: int, width: int) -> Tensor:
    """The inverse of `pack_integers`: int64 (k,)."""
    whole, rest = width // 8, width % 8
    values = torch.zeros(k, dtype=torch.int64, device=packed.device)
    for byte in range(whole):
        values |= packed[byte * k : (byte + 1) * k].to(torch.int64) << 8 * byte
    planes = packed[whole * k :].view(rest, -1) if rest else ()
    for plane, bits in enumerate(planes):
        values |= unpack_bits(bits, k).to(torch.int64) << 8 * whole + plane
    return values
