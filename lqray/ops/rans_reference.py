"""rANS (Duda 2013) of codes under a static model, in interleaved lanes, in numpy: slow, and the definition that native
kernels must match to the byte. docs/wire-format.md describes the stream.

A stream of n codes, all numbers little-endian: a bitmap of the codes that occur, in units of 16 bits; the frequency of
each of them (uint16, of 2**14 in all); the final state of each lane (uint32); the words (uint16) that decoding takes
up. Coordinate i is in lane i mod lanes; at each step lanes renew their states in their order. Without any code a stream
is empty; where one code alone occurs it ends with its frequency.

Frequencies follow from the codes, every lane begins at the lowest state, and each step can be undone. Decoding sees to
all three, so that damaged bytes are a fault, unless they happen to be another whole stream.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray.ops.checks import check_codes, check_stream

TOO_SHORT, FREQUENCIES, STATES, ENDS_EARLY, GOES_ON, OTHER_CODES = range(1, 7)
"""Faults of a stream; 0: none. csrc/rans_cpu.h counts them alike."""

_PRECISION = 14
_TOTAL = 1 << _PRECISION
_LOW, _WORD = np.uint64(1 << 16), np.uint64(16)
_SIDE = 64  # lanes that kernels take side by side
_SHORT_LANE, _LONG_LANE = 1 << 11, 1 << 13  # codes of one of fewer lanes; about those of one of more


def lanes_of(n: int) -> int:
    """Lanes of n codes: one for each 2,048 as long as these are fewer than 64, then 64 for each 2**19."""
    few = -(-n // _SHORT_LANE)
    return few if few < _SIDE else _SIDE * -(-n // (_SIDE * _LONG_LANE))


def rans_encode(codes: Tensor, bits: int) -> tuple[Tensor, int]:
    """The stream; 1 where a code is 2**bits or more, and there is none. See `lqray.ops.rans_encode`."""
    check_codes("rans_encode", codes, bits)
    numbers = codes.cpu().numpy()
    counts = np.bincount(numbers, minlength=2**bits)
    if not numbers.size or counts.size > 2**bits:
        return codes.new_empty(0), int(numbers.size > 0)
    frequencies = _frequencies(counts)
    used = np.flatnonzero(frequencies)
    bitmap = np.zeros(_bitmap_bits(bits), dtype=np.uint8)
    bitmap[used] = 1
    parts = [np.packbits(bitmap, bitorder="little"), frequencies[used].astype("<u2")]
    if used.size > 1:
        parts += _states_and_words(numbers, frequencies)
    return torch.from_numpy(np.concatenate([part.view(np.uint8) for part in parts])).to(codes.device), 0


def rans_decode(stream: Tensor, n: int, bits: int) -> tuple[Tensor, int]:
    """The codes, and the fault, with which these are none or mean nothing. See `lqray.ops.rans_decode`."""
    check_stream("rans_decode", stream, n, bits)
    codes, fault = _decoded(stream.cpu().numpy(), n, bits)
    return torch.from_numpy(codes).to(stream.device), fault


def _states_and_words(codes: NDArray[np.uint8], frequencies: NDArray[np.int64]) -> list[NDArray[np.generic]]:
    lanes = lanes_of(codes.size)
    states = np.full(lanes, _LOW, dtype=np.uint64)
    widths, firsts = frequencies.astype(np.uint64), (np.cumsum(frequencies) - frequencies).astype(np.uint64)
    # A state at its symbol's limit or above would leave 32 bits: its lower 16 go out first.
    limits = widths << np.uint64(32 - _PRECISION)
    chunks = []
    for begin in reversed(range(0, codes.size, lanes)):
        now = codes[begin : begin + lanes]
        x, width = states[: now.size], widths[now]
        full = x >= limits[now]
        chunks.append((x[full] & np.uint64(0xFFFF)).astype("<u2"))
        x[full] >>= _WORD
        whole = x // width
        states[: now.size] = (whole << np.uint64(_PRECISION)) + (x - whole * width) + firsts[now]
    return [states.astype("<u4"), *reversed(chunks)]


def _decoded(stream: NDArray[np.uint8], n: int, bits: int) -> tuple[NDArray[np.uint8], int]:
    none = np.empty(0, dtype=np.uint8)
    if n == 0:
        return none, GOES_ON if stream.size else 0
    frequencies, head, fault = _read_frequencies(stream, bits)
    if fault:
        return none, fault
    used = np.flatnonzero(frequencies)
    lanes = lanes_of(n) if used.size > 1 else 0
    body = head + 4 * lanes
    if stream.size < body:
        return none, TOO_SHORT
    if not lanes:
        return np.full(n, used[0], dtype=np.uint8), GOES_ON if stream.size > body else 0
    states = stream[head:body].copy().view("<u4").astype(np.uint64)
    if states.min() < _LOW:
        return none, STATES
    codes, taken = _read_codes(states, stream[body:].copy().view("<u2"), n, frequencies)
    if taken is None:
        return none, ENDS_EARLY
    if body + 2 * taken != stream.size:
        return none, GOES_ON
    same = (states == _LOW).all() and (_frequencies(np.bincount(codes, minlength=2**bits)) == frequencies).all()
    return codes, 0 if same else OTHER_CODES


def _read_frequencies(stream: NDArray[np.uint8], bits: int) -> tuple[NDArray[np.int64], int, int]:
    """(frequencies of the 2**bits codes, where they end, fault)."""
    frequencies = np.zeros(_bitmap_bits(bits), dtype=np.int64)
    begin = frequencies.size // 8
    if stream.size < begin or stream.size % 2:
        return frequencies, 0, TOO_SHORT
    used = np.flatnonzero(np.unpackbits(stream[:begin], bitorder="little"))
    end = begin + 2 * used.size
    if stream.size < end:
        return frequencies, 0, TOO_SHORT
    frequencies[used] = stream[begin:end].copy().view("<u2")
    sound = used.size and used[-1] < 2**bits and frequencies[used].min() > 0 and frequencies.sum() == _TOTAL
    return frequencies[: 2**bits], end, 0 if sound else FREQUENCIES


def _read_codes(
    states: NDArray[np.uint64], words: NDArray[np.uint16], n: int, frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], int | None]:
    """(n codes, how many words they took up, None where there are too few); states become those at the end."""
    symbol = np.repeat(np.arange(frequencies.size, dtype=np.uint8), frequencies)
    begins = (np.cumsum(frequencies) - frequencies)[symbol]
    width, within = frequencies[symbol].astype(np.uint64), (np.arange(_TOTAL) - begins).astype(np.uint64)
    codes = np.empty(n, dtype=np.uint8)
    taken = 0
    for begin in range(0, n, states.size):
        count = min(states.size, n - begin)
        x = states[:count]
        slot = (x & np.uint64(_TOTAL - 1)).astype(np.int64)
        codes[begin : begin + count] = symbol[slot]
        x = width[slot] * (x >> np.uint64(_PRECISION)) + within[slot]
        low = np.flatnonzero(x < _LOW)
        fresh = words[taken : taken + low.size]
        if fresh.size != low.size:
            return codes, None
        x[low] = (x[low] << _WORD) | fresh
        states[:count] = x
        taken += low.size
    return codes, taken


def _bitmap_bits(bits: int) -> int:
    return max(16, 1 << bits)


def _frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shares of 2**14, at least 1 for every code that occurs; the most frequent code bears what rounding leaves."""
    total = int(counts.sum())
    rounded = [max(1, (2 * _TOTAL * count + total) // (2 * total)) if count else 0 for count in counts.tolist()]
    shares = np.array(rounded, dtype=np.int64)
    while (excess := int(shares.sum()) - _TOTAL) != 0:
        largest = int(shares.argmax())
        shares[largest] -= min(excess, int(shares[largest]) - 1)
    return shares
