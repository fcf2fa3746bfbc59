"""rANS (Duda 2013) of quantization codes under a static model, in as many interleaved lanes as pay.

Stream: a frequency for each of the 2**bits codes (uint16, of 2**14 in all), the lanes' final states (uint32), then the
16-bit words that decoding takes up, all little-endian. Coordinate i is in lane i mod lanes; at each step lanes renew
their states in their order.

Frequencies follow from the codes, every lane begins at the lowest state, and each step can be undone. Decoding sees to
all three, so that damaged bytes are an error, unless they happen to be another whole stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Bytes = NDArray[np.uint8]

_PRECISION = 14
_TOTAL = 1 << _PRECISION
_LOW, _WORD = np.uint64(1 << 16), np.uint64(16)
_STEPS = 2048  # a lane's state costs 2 to 4 bytes: under 1/64 bit for each of its coordinates


def encode(codes: Codes, bits: int) -> Bytes:
    """Codes (n,) uint8 as a stream, about their empirical entropy long. Raises ValueError for a code of 2**bits or
    more."""
    _check_codes(codes, bits)
    lanes = _lanes(codes.size)
    frequencies = _frequencies(np.bincount(codes, minlength=2**bits))
    begins = np.cumsum(frequencies) - frequencies
    states = np.full(lanes, _LOW, dtype=np.uint64)
    # A state at its symbol's limit or above would leave 32 bits: its lower 16 go out first.
    widths, firsts = frequencies.astype(np.uint64), begins.astype(np.uint64)
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
    parts = [frequencies.astype("<u2"), states.astype("<u4"), *reversed(chunks)]
    return np.concatenate([part.view(np.uint8) for part in parts])


def decode(stream: Bytes, n: int, bits: int) -> Codes:
    """The n codes of a stream, (m,) uint8. Raises ValueError for bytes that are no stream of n codes."""
    _check_sizes(n, bits)
    if stream.dtype != np.uint8 or stream.ndim != 1:
        raise ValueError(f"an entropy-coded stream is {stream.dtype} of shape {stream.shape}; allowed: uint8 of (m,)")
    lanes = _lanes(n)
    head, body = 2 * 2**bits, 2 * 2**bits + 4 * lanes
    if stream.size < body or stream.size % 2:
        raise ValueError(f"an entropy-coded stream of {n} codes has at least {body} bytes; found {stream.size}")
    frequencies = stream[:head].copy().view("<u2").astype(np.uint64)
    states = stream[head:body].copy().view("<u4").astype(np.uint64)
    words = stream[body:].copy().view("<u2")
    if frequencies.sum() != _TOTAL:
        raise ValueError("the frequencies of an entropy-coded stream do not add up: its bytes were damaged")
    if n and states.min() < _LOW:
        raise ValueError("a lane of an entropy-coded stream has no valid state: its bytes were damaged")
    symbol = np.repeat(np.arange(2**bits, dtype=np.uint8), frequencies.astype(np.int64))
    begins = (np.cumsum(frequencies) - frequencies)[symbol]
    width = frequencies[symbol]
    within = np.arange(_TOTAL, dtype=np.uint64) - begins
    codes = np.empty(n, dtype=np.uint8)
    taken = 0
    for begin in range(0, n, lanes):
        count = min(lanes, n - begin)
        x = states[:count]
        slot = (x & np.uint64(_TOTAL - 1)).astype(np.int64)
        codes[begin : begin + count] = symbol[slot]
        x = width[slot] * (x >> np.uint64(_PRECISION)) + within[slot]
        low = np.flatnonzero(x < _LOW)
        fresh = words[taken : taken + low.size]
        if fresh.size != low.size:
            raise ValueError("an entropy-coded stream ends before its last code")
        x[low] = (x[low] << _WORD) | fresh
        states[:count] = x
        taken += low.size
    if taken != words.size:
        raise ValueError(
            f"an entropy-coded stream goes on after its last code: {2 * (words.size - taken)} bytes of {stream.size} "
            "are left"
        )
    if (states != _LOW).any() or (_frequencies(np.bincount(codes, minlength=2**bits)) != frequencies).any():
        raise ValueError(f"an entropy-coded stream is not that of the {n} codes it decodes to: its bytes were damaged")
    return codes


def planes_of(codes: Codes, bits: int) -> Bytes:
    """Codes (n,) uint8 as the bit planes of a payload: (4 * bits * ceil(n / 32),) uint8. Raises ValueError for a code
    of 2**bits or more."""
    _check_codes(codes, bits)
    padded = np.zeros((-(-codes.size // 32), 32), dtype=np.uint8)
    padded.reshape(-1)[: codes.size] = codes
    planes = (padded[:, None, :] >> np.arange(bits, dtype=np.uint8)[None, :, None]) & 1
    return np.packbits(planes, axis=2, bitorder="little").reshape(-1)


def codes_of(planes: Bytes, n: int, bits: int) -> Codes:
    """The inverse of `planes_of`. Raises ValueError for planes of another length than n codes have."""
    _check_sizes(n, bits)
    size = 4 * bits * -(-n // 32)
    if planes.dtype != np.uint8 or planes.shape != (size,):
        raise ValueError(
            f"bit planes are {planes.dtype} of shape {planes.shape}; allowed: uint8 of ({size},), which {n} codes of "
            f"{bits} bits make"
        )
    ones = np.unpackbits(planes.reshape(-1, bits, 4), axis=2, bitorder="little")
    codes = np.zeros((ones.shape[0], 32), dtype=np.uint8)
    for plane in range(bits):
        codes |= ones[:, plane] << np.uint8(plane)
    return codes.reshape(-1)[:n]


def _check_sizes(n: int, bits: int) -> None:
    if n < 0 or not 1 <= bits <= 8:
        raise ValueError(f"there are {n} codes of {bits} bits; allowed: at least 0 of 1 to 8 bits")


def _check_codes(codes: Codes, bits: int) -> None:
    _check_sizes(codes.size, bits)
    if codes.dtype != np.uint8 or codes.ndim != 1:
        raise ValueError(f"codes are {codes.dtype} of shape {codes.shape}; allowed: uint8 of one dimension")
    if codes.size and codes.max() >= 2**bits:
        raise ValueError(f"a code is {codes.max()}; allowed with {bits} bits: 0 to {2**bits - 1}")


def _lanes(n: int) -> int:
    return max(1, -(-n // _STEPS))


def _frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shares of 2**14, at least 1 for every code that occurs."""
    if not counts.any():
        return np.bincount([0], weights=[_TOTAL], minlength=counts.size).astype(np.int64)
    shares = np.where(counts > 0, np.maximum(1, np.rint(counts * (_TOTAL / counts.sum()))), 0).astype(np.int64)
    while (excess := shares.sum() - _TOTAL) != 0:
        largest = int(shares.argmax())
        shares[largest] -= min(excess, shares[largest] - 1)
    return shares
