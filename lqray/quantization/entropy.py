"""Bits that codes would take if they were entropy coded."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def entropy_bits(counts: Counts) -> float:
    """Shannon entropy of the empirical distribution of codes, bits per code; counts: (L,). 0.0 without any code."""
    used = counts[counts > 0].astype(np.float64)
    if not used.size:
        return 0.0
    share = used / used.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def huffman_bits(counts: Counts) -> float:
    """Mean length of a Huffman code made for the empirical distribution, bits per code. 0.0 without any code; a single
    symbol takes one bit, as in a real stream."""
    heap = [int(count) for count in counts if count]
    if len(heap) < 2:
        return float(len(heap))
    heapq.heapify(heap)
    total, length = sum(heap), 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        length += merged
        heapq.heappush(heap, merged)
    return length / total
