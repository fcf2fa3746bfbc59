"""Entropy coding of codes: one stream (`lqray.ops.rans_encode`), or one for each class of groups of codes.

Frequencies are those of a stream's own codes, so that groups whose codes are distributed differently (of large norms
and of small ones, of different widths) are worth a class each. A class costs 4 bytes for its stream's length, and the
stream's head: a bitmap of 2**bits bits (at least 16), 2 bytes for each code that occurs, 4 for each lane (one for 2,048
codes, 64 for 2**19), none where one code alone occurs.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from lqray import ops
from lqray.ops.checks import check_bits, check_coordinates

CLASSES = 256
"""The most classes."""


def encode(codes: Tensor, bits: int, classes: Tensor | None = None, group: int = 1) -> Tensor:
    """Codes (n,) uint8 of the CPU, entropy coded: (m,) uint8.

    classes: (ceil(n / group),) integers from 0 to 255, of each `group` consecutive codes, which whoever decodes has as
    well; then each class, 0 to the highest, is a uint32 length and a stream of so many bytes. Raises ValueError as
    `lqray.ops.rans_encode`, and for other classes.
    """
    if classes is None:
        return ops.rans_encode(codes, bits)
    order, sizes = _layout(codes.numel(), bits, classes, group)
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % group))
    sorted_codes = padded.view(-1, group).index_select(0, order).view(-1)
    parts, begin = [], 0
    for size, padding in sizes:
        stream = ops.rans_encode(sorted_codes[begin : begin + size], bits)
        parts += [torch.frombuffer(bytearray(struct.pack("<I", stream.numel())), dtype=torch.uint8), stream]
        begin += size + padding
    return torch.cat([codes.new_empty(0), *parts])


def decode(stream: Tensor, n: int, bits: int, classes: Tensor | None = None, group: int = 1) -> Tensor:
    """The n codes that `encode` was given with these classes: (m,) uint8 of the CPU, whatever its bytes, to (n,) uint8.
    Raises ValueError for bytes that it does not make of n such codes, and for other classes."""
    if classes is None:
        return ops.rans_decode(stream, n, bits)
    order, sizes = _layout(n, bits, classes, group)
    sorted_codes = stream.new_zeros(classes.numel() * group)
    begin = taken = 0
    for size, padding in sizes:
        (length,) = struct.unpack("<I", _part(stream, taken, 4).numpy().tobytes())
        sorted_codes[begin : begin + size] = ops.rans_decode(_part(stream, taken + 4, length), size, bits)
        begin, taken = begin + size + padding, taken + 4 + length
    if taken != stream.numel():
        raise ValueError(f"entropy-coded classes of {taken} bytes are {stream.numel()} long")
    places = torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel()))
    return sorted_codes.view(-1, group).index_select(0, places).view(-1)[:n]


def _layout(n: int, bits: int, classes: Tensor, group: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """(groups in the order of their classes, of each class its codes and what pads its last group)."""
    check_coordinates("rans", n)
    check_bits("rans", bits)
    if group < 1:
        raise ValueError(f"groups have {group} codes; allowed: at least 1")
    groups = -(-n // group)
    if classes.is_floating_point() or classes.is_complex() or classes.shape != (groups,):
        raise ValueError(
            f"classes are {classes.dtype} of shape {tuple(classes.shape)}; allowed: integers of ({groups},), one for "
            f"each {group} of {n} codes"
        )
    if not groups:
        return classes.to(torch.int64), []
    own = classes.to(torch.int64)
    if int(own.min()) < 0 or int(own.max()) >= CLASSES:
        raise ValueError(f"classes are {int(own.min())} to {int(own.max())}; allowed: 0 to {CLASSES - 1}")
    padding, last = groups * group - n, int(own[-1])  # the last group is the last one of its class
    counts = torch.bincount(own).tolist()
    sizes = [(count * group - padding, padding) if c == last else (count * group, 0) for c, count in enumerate(counts)]
    return own.argsort(stable=True), sizes


def _part(stream: Tensor, begin: int, size: int) -> Tensor:
    if begin + size > stream.numel():
        raise ValueError(
            f"entropy-coded classes end too early: {stream.numel()} bytes of at least {begin + size} arrived"
        )
    return stream[begin : begin + size]
