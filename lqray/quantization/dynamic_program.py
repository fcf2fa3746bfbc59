"""The exact choice of levels among given points, by dynamic programming.

With cumulative moments S0, S1, S2 of a distribution at the points x_i, the expected variance of the coordinates between
two neighbouring levels x_i < x_j is

    C(i, j) = -(S2_j - S2_i) + (x_i + x_j)(S1_j - S1_i) - x_i x_j (S0_j - S0_i)

and the best k + 1 levels up to x_j are the best k up to some x_i and x_j. C satisfies the quadrangle inequality, so the
best i grows with j and a layer takes O(M log M) (cf. QUIVER, Ben Basat et al., NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

# Up to here the whole matrix of costs is cheaper than a search that skips most of it.
_DENSE = 512


@dataclass(frozen=True)
class Points:
    """x: (M,), strictly increasing. zeroth, first, second: (M,), cumulative moments of the distribution up to x."""

    x: Array
    zeroth: Array
    first: Array
    second: Array

    @classmethod
    def of(cls, x: Array, weights: Array) -> Points:
        """Of a discrete distribution: (M,) strictly increasing positions, (M,) weights."""
        return cls(x, np.cumsum(weights), np.cumsum(weights * x), np.cumsum(weights * x * x))

    def cost(self, i: Indices, j: Indices) -> Array:
        """C(i, j) elementwise, for i <= j: the expected variance between levels x_i and x_j."""
        low, high = self.x[i], self.x[j]
        value = -(self.second[j] - self.second[i])
        value += (low + high) * (self.first[j] - self.first[i])
        value -= low * high * (self.zeroth[j] - self.zeroth[i])
        return np.maximum(value, 0.0)


def choose_levels(points: Points, count: int) -> Indices:
    """Indices of at most `count` points, first and last among them, of least expected variance as levels.

    count >= 2. Fewer than `count` are returned only when fewer have the same expected variance, up to rounding.
    """
    size = points.x.size
    everything = np.arange(size)
    best = points.cost(np.zeros(size, dtype=np.intp), everything)
    layers: list[Indices] = []
    matrix = _cost_matrix(points) if size <= _DENSE else None
    for _ in range(min(count, size) - 2):
        before, best = _dense_layer(best, matrix) if matrix is not None else _monotone_layer(points, best)
        layers.append(before)
    chosen = [size - 1]
    for before in reversed(layers):
        chosen.append(int(before[chosen[-1]]))
    return np.unique([0, *chosen])


def _cost_matrix(points: Points) -> Array:
    i, j = np.meshgrid(np.arange(points.x.size), np.arange(points.x.size), indexing="ij")
    return np.where(i <= j, points.cost(i, j), np.inf)


def _dense_layer(best: Array, matrix: Array) -> tuple[Indices, Array]:
    total = best[:, None] + matrix
    before = total.argmin(axis=0)
    return before, total[before, np.arange(best.size)]


def _monotone_layer(points: Points, best: Array) -> tuple[Indices, Array]:
    """For all j the i <= j of least best_i + C(i, j), from coarse strides of j to fine: between two solved neighbours
    only the i between theirs are left."""
    size = best.size
    before = np.zeros(size, dtype=np.intp)
    after = np.empty(size)
    stride = 1 << (size - 1).bit_length()
    solved = np.zeros(0, dtype=np.intp)
    while stride:
        fresh = np.setdiff1d(np.arange(0, size, stride), solved, assume_unique=True)
        left, right = fresh - stride, fresh + stride
        low = np.where(left >= 0, before[np.maximum(left, 0)], 0)
        high = np.where(right < size, before[np.minimum(right, size - 1)], fresh)
        high = np.minimum(high, fresh)
        lengths = high - low + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        owner = np.repeat(np.arange(fresh.size), lengths)
        i = np.arange(lengths.sum()) - starts[owner] + low[owner]
        values = best[i] + points.cost(i, fresh[owner])
        least = np.minimum.reduceat(values, starts)
        hits = np.flatnonzero(values == least[owner])
        first = hits[np.unique(owner[hits], return_index=True)[1]]
        before[fresh], after[fresh] = i[first], least
        solved = np.union1d(solved, fresh)
        stride //= 2
    return before, after
