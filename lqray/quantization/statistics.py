"""What is remembered of gradients between level updates: norm, mean and deviation of their buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lqray import ops
from lqray.quantization.distribution import TruncatedNormalMixture

Array = NDArray[np.float64]
Weighting = Literal["norm", "norm_squared"]


@dataclass(frozen=True)
class BucketStatistics:
    """Statistics of K buckets: float64 (K,) each.

    norms: norm of the bucket. means, sigmas: mean and standard deviation (ddof = 1) of its normalized coordinates.
    counts: its number of coordinates.
    """

    norms: Array
    means: Array
    sigmas: Array
    counts: Array

    @classmethod
    def empty(cls) -> BucketStatistics:
        """Statistics of no bucket."""
        return cls.from_table(np.zeros((0, 4)))

    @classmethod
    def from_table(cls, table: Array) -> BucketStatistics:
        """From a (K, 4) table with columns norm, mean, sigma, count."""
        return cls(*np.ascontiguousarray(table.T))

    def table(self) -> Array:
        """As a (K, 4) float64 table, the form in which ranks exchange them."""
        return np.stack([self.norms, self.means, self.sigmas, self.counts], axis=1)

    @classmethod
    def merge(cls, parts: Sequence[BucketStatistics]) -> BucketStatistics:
        """All buckets of all parts, in order."""
        return cls.from_table(np.concatenate([cls.empty().table(), *(part.table() for part in parts)]))

    @property
    def pooled_mean(self) -> float:
        """Mean of all normalized coordinates, NaN without any."""
        return float((self.means * self.counts).sum() / self.counts.sum()) if self.counts.size else float("nan")

    @property
    def pooled_sigma(self) -> float:
        """Square root of sum sigma^2 (count - 1) / sum count, NaN without any."""
        if not self.counts.size:
            return float("nan")
        return float(np.sqrt((self.sigmas**2 * (self.counts - 1)).sum() / self.counts.sum()))

    def largest(self, components: int) -> BucketStatistics:
        """The `components` buckets of largest norm among those of positive norm and deviation, largest first."""
        usable = np.flatnonzero((self.norms > 0) & (self.sigmas > 0))
        chosen = usable[np.argsort(-self.norms[usable], kind="stable")[:components]]
        return BucketStatistics.from_table(self.table()[chosen])

    def pooled(self) -> BucketStatistics:
        """One bucket of the same pooled mean, pooled deviation and count; no bucket where there is none."""
        if not self.counts.size:
            return self
        count = self.counts.sum()
        sigma = self.pooled_sigma * np.sqrt(count / max(count - 1.0, 1.0))
        return BucketStatistics.from_table(np.array([[1.0, self.pooled_mean, sigma, count]]))

    def mixture(self, components: int, weighting: Weighting = "norm") -> TruncatedNormalMixture | None:
        """The weighted mixture of the `components` buckets of largest norm (Faghri et al. 2020, section 3.2), a short
        bucket with the share that its coordinates have of a full one's weight.

        None when no bucket has a positive norm and deviation: there is nothing to fit levels to.
        """
        chosen = self.largest(components)
        if not chosen.norms.size:
            return None
        # Divided by the largest: the square of a tiny norm would be 0.
        weights = chosen.norms / chosen.norms[0]
        weights = weights if weighting == "norm" else weights**2
        return TruncatedNormalMixture(chosen.means, chosen.sigmas, weights * chosen.counts)

    def normal(self) -> TruncatedNormalMixture | None:
        """One truncated normal of the pooled mean and deviation (the paper's norm-less variants); None without any."""
        sigma = self.pooled_sigma
        return TruncatedNormalMixture([self.pooled_mean], [sigma]) if sigma > 0 else None


def bucket_statistics(gradient: Tensor, bucket_size: int, norm: str) -> BucketStatistics:
    """Statistics of the buckets of a gradient (n,), the short last one included.

    For buckets that start anew at every layer, call it for each layer's tensor and merge. Buckets whose norm is zero or
    not finite are left out: they have no normalized coordinates.
    """
    if gradient.numel() == 0:
        return BucketStatistics.empty()
    columns = ops.bucket_statistics(gradient, bucket_size, norm)
    norms, means, sigmas = (column.cpu().numpy() for column in columns)
    counts = np.full(norms.size, bucket_size)
    counts[-1] = gradient.numel() - (norms.size - 1) * bucket_size
    table = np.stack([norms, means, sigmas, counts], axis=1)
    return BucketStatistics.from_table(table[np.isfinite(table).all(axis=1) & (norms > 0)])
