"""The distribution of normalized coordinates: a mixture of normals truncated to [-1, 1], all in closed form.

F = sum_k w_k TN(m_k, s_k; -1, 1) (Faghri et al. 2020, section 3.2). With z = (x - m) / s and Z the mass of the normal
inside [-1, 1], the partial moments of a component over an interval are those of the normal divided by Z:

    dM0 = d Phi(z),   dM1 = m dM0 - s d phi(z),   dM2 = (m^2 + s^2) dM0 - d[(s^2 z + 2 m s) phi(z)]

Moments of an interval are taken around its left end, where they are small numbers, and masses on the side of the normal
where they do not cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_SQRT_2PI = np.sqrt(2.0 * np.pi)
# Elements of a temporary array: a few of them stay in the cache.
_CHUNK = 32768
# Narrower normals are point masses to float64.
_LEAST_SIGMA = 1e-15


@dataclass(frozen=True)
class _Component:
    """Columns (K, 1): location, scale, weight divided by the mass inside [-1, 1]."""

    mean: Array
    sigma: Array
    weight: Array


@dataclass(frozen=True)
class Moments:
    """Moments of each interval [a, b] between neighbouring edges, around its left end: mass, first, second, (L - 1,)
    each, the integrals of 1, (r - a), (r - a)^2. density: (L,), at the edges."""

    mass: Array
    first: Array
    second: Array
    density: Array

    def expected_variance(self, edges: Array) -> float:
        """Psi of levels at the edges these moments were taken at."""
        return float(np.sum(np.maximum(np.diff(edges) * self.first - self.second, 0.0)))


class TruncatedNormalMixture:
    """F = sum_k weights_k TN(means_k, sigmas_k; -1, 1) on [-1, 1].

    means, sigmas, weights: (K,), K >= 1, finite, weights not all zero; they are normalized to sum 1. A
    sigma of 0 is a point mass. Raises ValueError otherwise, for a negative sigma, or when no component has any mass
    inside [-1, 1] in float64.
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
            np.isfinite([mean, sigma, weight]).all() and (sigma >= 0).all() and (weight >= 0).all() and weight.any()
        ):
            raise ValueError(
                "means must be finite, sigmas non-negative and finite, weights non-negative and not all zero"
            )
        sigma = np.maximum(sigma, _LEAST_SIGMA)
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

        def mass(c: _Component, flat: Array) -> Array:
            return c.weight[:, 0] @ _interval_mass((-1.0 - c.mean) / c.sigma, (flat - c.mean) / c.sigma)

        return np.asarray(np.clip(self._sum(mass, points), 0.0, 1.0))

    def pdf(self, x: ArrayLike) -> Array:
        """The density f(x), elementwise; 0 outside [-1, 1]."""
        points = np.asarray(x, dtype=np.float64)

        def density(c: _Component, flat: Array) -> Array:
            return (c.weight / c.sigma)[:, 0] @ _normal_pdf((flat - c.mean) / c.sigma)

        return np.where(np.abs(points) <= 1.0, self._sum(density, points), 0.0)

    def _sum(self, of: Callable[[_Component, Array], Array], points: Array) -> Array:
        """The sum of `of` over all components, a chunk of them at a time, in the shape of the points."""
        flat = points.reshape(-1)
        total = np.zeros(flat.shape)
        for part in self._chunks(flat.size):
            total += of(part, flat)
        return total.reshape(points.shape)

    def _chunks(self, points: int) -> Iterator[_Component]:
        c, size = self._c, max(1, _CHUNK // max(points, 1))
        for k in range(0, c.mean.size, size):
            yield _Component(c.mean[k : k + size], c.sigma[k : k + size], c.weight[k : k + size])

    def quantile(self, p: ArrayLike) -> Array:
        """F^-1(p), elementwise for p in [0, 1], by bisection to the last bit."""
        target = np.asarray(p, dtype=np.float64)
        low, high = np.full(target.shape, -1.0), np.full(target.shape, 1.0)
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(0.5 * (low + high))

    def moments(self, edges: Array) -> Moments:
        """Moments of the intervals between edges: (L,), increasing, in [-1, 1]."""
        parts = [_moments(edges, part) for part in self._chunks(edges.size)]
        return Moments(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))

    def expected_variance(self, levels: ArrayLike) -> float:
        """Psi(l) = sum_j integral over [l_j, l_j+1] of (l_j+1 - r)(r - l_j) dF(r), per normalized coordinate."""
        edges = np.asarray(levels, dtype=np.float64)
        return self.moments(edges).expected_variance(edges)


def _moments(edges: Array, c: _Component) -> tuple[Array, Array, Array, Array]:
    mean, sigma = c.mean, c.sigma
    z = (edges - mean) / sigma
    density = _normal_pdf(z)
    tail = _cumulative(-np.abs(z))
    below, above = np.where(z < 0, tail, 1.0 - tail), np.where(z > 0, tail, 1.0 - tail)
    # On the side of the normal where the two do not cancel.
    mass = np.where(z[:, :-1] + z[:, 1:] > 0, above[:, :-1] - above[:, 1:], below[:, 1:] - below[:, :-1])
    np.maximum(mass, 0.0, out=mass)
    width = np.diff(edges)
    offset = mean - edges[:-1]
    first = offset * mass - sigma * (density[:, 1:] - density[:, :-1])
    second = offset * first + sigma * (sigma * mass - width * density[:, 1:])
    limit = width * mass
    np.clip(first, 0.0, limit, out=first)
    np.clip(second, 0.0, width * first, out=second)
    weight = c.weight[:, 0]
    return weight @ mass, weight @ first, weight @ second, (weight / sigma[:, 0]) @ density


def _normal_pdf(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / _SQRT_2PI  # type: ignore[no-any-return]


def _cumulative(z: Array) -> Array:
    """Phi(z)."""
    # Imported where levels are fitted: a third of a second in which a process that fits none need not wait.
    from scipy.special import ndtr

    return np.asarray(ndtr(z))


def _interval_mass(a: Array, b: Array) -> Array:
    """Phi(b) - Phi(a) for a <= b, taken on the side of zero where the two do not cancel."""
    flip = a + b > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)
    return np.maximum(_cumulative(high) - _cumulative(low), 0.0)
