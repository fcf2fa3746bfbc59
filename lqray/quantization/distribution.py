"""The distribution of normalized coordinates: a mixture of normals truncated to [-1, 1], all in closed form.

F = sum_k w_k TN(m_k, s_k; -1, 1) (Faghri et al. 2020, section 3.2). With z = (x - m) / s and Z the mass of the normal
inside [-1, 1], the partial moments of a component over an interval are those of the normal divided by Z:

    dM0 = d Phi(z),   dM1 = m dM0 - s d phi(z),   dM2 = (m^2 + s^2) dM0 - d[(s^2 z + 2 m s) phi(z)]

Moments of an interval are taken around its left end, where they are small numbers, and masses on the side of the normal
where they do not cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

_SQRT_2PI = np.sqrt(2.0 * np.pi)


@dataclass(frozen=True)
class _Component:
    """Columns (K, 1): location, scale, weight divided by the mass inside [-1, 1]."""

    mean: Array
    sigma: Array
    weight: Array


class TruncatedNormalMixture:
    """F = sum_k weights_k TN(means_k, sigmas_k; -1, 1) on [-1, 1].

    means, sigmas, weights: (K,), K >= 1, finite, weights not all zero; they are normalized to sum 1. sigmas must be
    positive. Raises ValueError otherwise, or when no component has any mass inside [-1, 1] in float64.
    """

    def __init__(self, means: ArrayLike, sigmas: ArrayLike, weights: ArrayLike | None = None) -> None:
        mean = np.atleast_1d(np.asarray(means, dtype=np.float64))
        sigma = np.atleast_1d(np.asarray(sigmas, dtype=np.float64))
        weight = np.ones_like(mean) if weights is None else np.atleast_1d(np.asarray(weights, dtype=np.float64))
        if not (mean.ndim == 1 and mean.size and mean.shape == sigma.shape == weight.shape):
            raise ValueError(
                f"means, sigmas, weights need one shape (K,), K >= 1; found {mean.shape}, {sigma.shape}, {weight.shape}"
            )
        if not (
            np.isfinite([mean, sigma, weight]).all() and (sigma > 0).all() and (weight >= 0).all() and weight.any()
        ):
            raise ValueError("means must be finite, sigmas positive and finite, weights non-negative and not all zero")
        self.means, self.sigmas = mean, sigma
        self.weights = weight / weight.sum()
        inside = _interval_mass((-1.0 - mean) / sigma, (1.0 - mean) / sigma)
        usable = (inside > 0) & (self.weights > 0)
        if not usable.any():
            raise ValueError("no component has mass inside [-1, 1]")
        scaled = np.zeros_like(mean)
        scaled[usable] = self.weights[usable] / inside[usable]
        self._c = _Component(mean[usable, None], sigma[usable, None], scaled[usable, None] / self.weights[usable].sum())

    def cdf(self, x: ArrayLike) -> Array:
        """F(x), elementwise, in [0, 1]."""
        points = np.clip(np.asarray(x, dtype=np.float64), -1.0, 1.0)
        c = self._c
        mass = _interval_mass((-1.0 - c.mean) / c.sigma, (points.reshape(1, -1) - c.mean) / c.sigma)
        return np.asarray(np.clip((c.weight * mass).sum(axis=0), 0.0, 1.0).reshape(points.shape))

    def pdf(self, x: ArrayLike) -> Array:
        """The density f(x), elementwise; 0 outside [-1, 1]."""
        points = np.asarray(x, dtype=np.float64)
        c = self._c
        density = (c.weight / c.sigma * _normal_pdf((points.reshape(1, -1) - c.mean) / c.sigma)).sum(axis=0)
        return np.where(np.abs(points) <= 1.0, density.reshape(points.shape), 0.0)

    def quantile(self, p: ArrayLike) -> Array:
        """F^-1(p), elementwise for p in [0, 1], by bisection to the last bit."""
        target = np.asarray(p, dtype=np.float64)
        low, high = np.full(target.shape, -1.0), np.full(target.shape, 1.0)
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(0.5 * (low + high))

    def interval_moments(self, edges: Array) -> tuple[Array, Array, Array]:
        """Moments of each interval [edges_j, edges_j+1] around its left end a: the integrals of 1, (r - a), (r - a)^2.

        edges: (L,), increasing, in [-1, 1]. Returns three (L - 1,) arrays.
        """
        c = self._c
        z = (edges[None, :] - c.mean) / c.sigma
        mass = _interval_mass(z[:, :-1], z[:, 1:])
        density = _normal_pdf(z)
        d_density = np.diff(density, axis=1)
        offset = c.mean - edges[None, :-1]
        first = offset * mass - c.sigma * d_density
        width = np.diff(edges)[None, :]
        second = offset * first + c.sigma**2 * mass - c.sigma * width * density[:, 1:]
        first = np.clip(first, 0.0, width * mass)
        second = np.clip(second, 0.0, width * first)
        return (c.weight * mass).sum(axis=0), (c.weight * first).sum(axis=0), (c.weight * second).sum(axis=0)

    def expected_variance(self, levels: ArrayLike) -> float:
        """Psi(l) = sum_j integral over [l_j, l_j+1] of (l_j+1 - r)(r - l_j) dF(r), per normalized coordinate."""
        edges = np.asarray(levels, dtype=np.float64)
        _, first, second = self.interval_moments(edges)
        return float(np.sum(np.maximum(np.diff(edges) * first - second, 0.0)))


def _normal_pdf(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / _SQRT_2PI  # type: ignore[no-any-return]


def _interval_mass(a: Array, b: Array) -> Array:
    """Phi(b) - Phi(a) for a <= b, taken on the side of zero where the two do not cancel."""
    flip = a + b > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)
    return np.maximum(ndtr(high) - ndtr(low), 0.0)  # type: ignore[no-any-return]
