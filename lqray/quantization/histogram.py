"""The empirical distribution of normalized coordinates, as weighted points, and the levels that are exactly best.

Bins are fixed and dense: their edges are equally spaced in asinh, 0.35% wide where coordinates are large and 3e-9 at
zero. A bin keeps its weight and its first moment, so that it stands for its coordinates by a point at their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray import ops
from lqray.quantization.dynamic_program import Points, choose_levels
from lqray.quantization.levels import Levels, fill_levels
from lqray.quantization.statistics import Weighting

Array = NDArray[np.float64]

BINS = 8192
_STRETCH = 21 * np.log(2.0)


@dataclass(frozen=True)
class Histogram:
    """A weighted distribution of coordinates in [-1, 1]. bins: (M,) numbers of the bins that are not empty, ascending.
    weights: (M,) total weight in each. firsts: (M,) integral of r in each. All float64."""

    bins: Array
    weights: Array
    firsts: Array

    @classmethod
    def empty(cls) -> Histogram:
        """No coordinate."""
        return cls.from_table(np.zeros((0, 4)))

    @classmethod
    def from_table(cls, table: Array) -> Histogram:
        """From rows of (bin, weight, first, unused); rows of one bin are added up in their order."""
        bins, owner = np.unique(table[:, 0], return_inverse=True)
        weights, firsts = np.zeros(bins.size), np.zeros(bins.size)
        np.add.at(weights, owner, table[:, 1])
        np.add.at(firsts, owner, table[:, 2])
        return cls(bins, weights, firsts)

    def table(self) -> Array:
        """As an (M, 4) float64 table, the form in which ranks exchange it."""
        return np.stack([self.bins, self.weights, self.firsts, np.zeros(self.bins.size)], axis=1)

    @classmethod
    def merge(cls, parts: Sequence[Histogram]) -> Histogram:
        """The sum of all parts."""
        return cls.from_table(np.concatenate([cls.empty().table(), *(part.table() for part in parts)]))

    @property
    def points(self) -> Array:
        """(M,), ascending: the mean coordinate of each bin."""
        return np.clip(self.firsts / self.weights, -1.0, 1.0)

    def expected_variance(self, levels: Levels) -> float:
        """Psi(l) of the points, per normalized coordinate of weight 1: sum w (l_j+1 - r)(r - l_j) / sum w."""
        r = self.points
        above = np.clip(np.searchsorted(levels, r, side="right"), 1, levels.size - 1)
        return float(np.sum(self.weights * (levels[above] - r) * (r - levels[above - 1])) / self.weights.sum())

    def optimal_levels(self, bits: int, current: Levels) -> Levels:
        """The levels of least expected variance: (2**bits,) float64. `current` where there is nothing better.

        Between neighbouring points Psi is linear in each level, so the best levels are among the points.
        """
        if not self.bins.size:
            return current
        x, weights = _with_ends(self.points, self.weights)
        chosen = fill_levels(x[choose_levels(Points.of(x, weights), 2**bits)], 2**bits)
        valid = np.all(np.diff(chosen.astype(np.float32)) > 0)
        return chosen if valid and self.expected_variance(chosen) < self.expected_variance(current) else current


def _with_ends(points: Array, weights: Array) -> tuple[Array, Array]:
    inside = (points > -1.0) & (points < 1.0)
    ends = np.array([weights[points == -1.0].sum(), weights[points == 1.0].sum()])
    return np.concatenate([[-1.0], points[inside], [1.0]]), np.concatenate([ends[:1], weights[inside], ends[1:]])


def histogram(gradient: Tensor, bucket_size: int, norm: str, weighting: Weighting) -> Histogram:
    """Of the normalized coordinates of all buckets of a gradient (n,), the short last one included."""
    n = gradient.numel()
    each = ops.bucket_norms(gradient, bucket_size, norm).repeat_interleave(min(bucket_size, n))[:n]
    usable = each.isfinite() & (each > 0)
    if not usable.any():
        return Histogram.empty()
    norms = each[usable].to(torch.float64)
    r = (gradient[usable].to(torch.float64) / norms).clamp(-1.0, 1.0)
    weight = norms if weighting == "norm" else norms.square()
    stretched = torch.asinh(r * float(np.sinh(_STRETCH))) / float(_STRETCH)
    bins = ((stretched + 1.0) * (BINS / 2)).to(torch.int64).clamp(0, BINS - 1)
    weights = torch.bincount(bins, weight, minlength=BINS).cpu().numpy()
    firsts = torch.bincount(bins, weight * r, minlength=BINS).cpu().numpy()
    kept = np.flatnonzero(weights)
    return Histogram(kept.astype(np.float64), weights[kept], firsts[kept])
