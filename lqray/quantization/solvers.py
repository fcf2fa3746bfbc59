"""Levels of least expected variance under a distribution of normalized coordinates (ALQ, Faghri et al. 2020).

The gradient and the tridiagonal Hessian of Psi have closed forms in the interval moments of the distribution,

    g_j     = integral (r - l_j-1) dF over [l_j-1, l_j]  -  integral (l_j+1 - r) dF over [l_j, l_j+1]
    H_j,j   = (l_j+1 - l_j-1) f(l_j)        H_j,j+1 = -(F(l_j+1) - F(l_j))

so a damped Newton method solves for all inner levels at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solveh_banded

from lqray.quantization.distribution import TruncatedNormalMixture
from lqray.quantization.levels import Levels, exponential_levels, uniform_levels

_MAX_ITERATIONS = 60
_RELATIVE_TOLERANCE = 1e-13


def solve_levels(distribution: TruncatedNormalMixture, bits: int, initial: ArrayLike | None = None) -> Levels:
    """Levels that minimize the expected variance: (2**bits,) float64, strictly increasing from -1 to 1.

    Newton's method runs from several starts (`initial` among them) and the best end is returned; it is never worse than
    `initial`, nor than the exponential levels when there is no `initial`. Raises ValueError for bits outside 1..8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}; allowed: 1 to 8")
    best = exponential_levels(bits) if initial is None else np.asarray(initial, dtype=np.float64)
    best_variance = distribution.expected_variance(best)
    for start in _starts(distribution, bits, best):
        levels = _newton(distribution, start)
        variance = distribution.expected_variance(levels)
        if variance < best_variance and np.all(np.diff(levels.astype(np.float32)) > 0):
            best, best_variance = levels, variance
    return best


def _starts(distribution: TruncatedNormalMixture, bits: int, current: Levels) -> Iterator[Levels]:
    yield _spread_levels(distribution, bits)
    yield uniform_levels(bits)
    yield current


def _spread_levels(distribution: TruncatedNormalMixture, bits: int) -> Levels:
    """Levels of local density f**(1/3), optimal in the limit of many levels, where Psi is about the mean of
    f * spacing**2 / 6 (cf. Panter and Dite, 1951)."""
    scale = float(np.median(distribution.sigmas))
    center = float(np.dot(distribution.weights, distribution.means))
    offsets = np.concatenate([-np.geomspace(2.0, scale * 1e-2, 256), [0.0], np.geomspace(scale * 1e-2, 2.0, 256)])
    grid = np.unique(np.clip(np.concatenate([center + offsets, [-1.0, 1.0]]), -1.0, 1.0))
    density = np.cbrt(distribution.pdf(grid))
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    uniform = uniform_levels(bits)
    if not mass[-1] > 0:
        return uniform
    share = 0.5 + 0.5 * uniform
    levels = np.interp(share, mass / mass[-1], grid)
    # A thousandth of the uniform levels keeps neighbours apart where the density vanishes.
    levels = 0.999 * levels + 0.001 * uniform
    levels[0], levels[-1] = -1.0, 1.0
    return np.asarray(levels)


def _newton(distribution: TruncatedNormalMixture, start: Levels) -> Levels:
    levels = start.copy()
    if levels.size <= 2:
        return levels
    variance = distribution.expected_variance(levels)
    for _ in range(_MAX_ITERATIONS):
        gradient, diagonal, beside = _derivatives(distribution, levels)
        step = _descent_direction(gradient, diagonal, beside)
        slope = float(gradient @ step)
        if not -slope > _RELATIVE_TOLERANCE * variance or not np.isfinite(step).all():
            break
        moved = _line_search(distribution, levels, step, variance, slope)
        if moved is None:
            break
        levels, variance = moved
    return levels


def _derivatives(distribution: TruncatedNormalMixture, levels: Levels) -> tuple[Levels, Levels, Levels]:
    """Gradient (L - 2,), diagonal (L - 2,) and first off-diagonal (L - 3,) of the Hessian, of the inner levels."""
    mass, first, _ = distribution.interval_moments(levels)
    right = np.diff(levels) * mass - first
    diagonal = (levels[2:] - levels[:-2]) * distribution.pdf(levels[1:-1])
    return first[:-1] - right[1:], diagonal, -mass[1:-1]


def _descent_direction(gradient: Levels, diagonal: Levels, beside: Levels) -> NDArray[np.float64]:
    """The Newton step; where the Hessian is not positive definite, with its diagonal raised until it dominates."""
    banded = np.zeros((2, gradient.size))
    banded[0, 1:] = beside
    banded[1] = diagonal
    try:
        step = -solveh_banded(banded, gradient)
    except np.linalg.LinAlgError:
        step = np.full_like(gradient, np.nan)
    if not np.isfinite(step).all():
        around = np.zeros_like(diagonal)
        around[:-1] -= beside
        around[1:] -= beside
        floor = 1e-12 * max(float(around.max(initial=0.0)), float(diagonal.max(initial=0.0)), np.finfo(np.float64).tiny)
        banded[1] = np.maximum(diagonal, 1.001 * around) + floor
        step = -solveh_banded(banded, gradient)
    return np.asarray(step)


def _line_search(
    distribution: TruncatedNormalMixture, levels: Levels, step: Levels, variance: float, slope: float
) -> tuple[Levels, float] | None:
    """The first of geometrically shorter steps that keeps the order of the levels and lowers the variance enough."""
    full = np.concatenate([[0.0], step, [0.0]])
    closing = -np.diff(full)
    gaps = np.diff(levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = float(np.min(np.where(closing > 0, gaps / closing, np.inf)))
    length = min(1.0, 0.9 * reach)
    for _ in range(40):
        candidate = levels + length * full
        value = distribution.expected_variance(candidate)
        if value <= variance + 1e-4 * length * slope:
            return candidate, value
        length *= 0.5
    return None
