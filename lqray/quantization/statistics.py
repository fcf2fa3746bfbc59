"""What is remembered of gradients between level updates: norm, mean and deviation of their buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray import ops
from lqray.quantization.distribution import TruncatedNormalMixture

Array = NDArray[np.float64]


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

    def mixture(self, components: int) -> TruncatedNormalMixture | None:
        """The norm-weighted mixture of the `components` buckets of largest norm (Faghri et al. 2020, section 3.2).

        None when no bucket has a positive norm and deviation: there is nothing to fit levels to.
        """
        usable = np.flatnonzero((self.norms > 0) & (self.sigmas > 0))
        if not usable.size:
            return None
        largest = usable[np.argsort(-self.norms[usable], kind="stable")[:components]]
        return TruncatedNormalMixture(self.means[largest], self.sigmas[largest], self.norms[largest])


def bucket_statistics(gradient: Tensor, bucket_size: int, norm: str) -> BucketStatistics:
    """Statistics of the full buckets of a gradient (n,), or of its one short bucket when n < bucket_size.

    Buckets whose norm is zero or not finite are left out: they have no normalized coordinates.
    """
    n = gradient.numel()
    full = n - n % bucket_size
    rows = gradient[:full].reshape(-1, bucket_size) if full else gradient.reshape(1, -1)
    if rows.numel() == 0:
        return BucketStatistics.empty()
    norms = ops.bucket_norms(rows.reshape(-1), rows.shape[1], norm).to(torch.float64)
    values = rows.to(torch.float64)
    means = values.mean(dim=1) / norms
    sigmas = values.std(dim=1, correction=1) / norms if rows.shape[1] > 1 else torch.zeros_like(norms)
    counts = torch.full_like(norms, rows.shape[1])
    table = torch.stack([norms, means, sigmas, counts], dim=1).cpu().numpy()
    return BucketStatistics.from_table(table[np.isfinite(table).all(axis=1) & (table[:, 0] > 0)])
