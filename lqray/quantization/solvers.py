"""Levels of least expected variance under a distribution of normalized coordinates (Faghri et al. 2020).

The gradient and the tridiagonal Hessian of Psi have closed forms in the interval moments of the distribution,

    g_j     = integral (r - l_j-1) dF over [l_j-1, l_j]  -  integral (l_j+1 - r) dF over [l_j, l_j+1]
    H_j,j   = (l_j+1 - l_j-1) f(l_j)        H_j,j+1 = -(F(l_j+1) - F(l_j))

so a damped Newton method solves for all inner levels at once. Its starts come from an exact choice among a hundred
points, which finds the basin of the best levels; Newton finds its bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lqray.quantization.distribution import Moments, TruncatedNormalMixture
from lqray.quantization.dynamic_program import Points, choose_levels
from lqray.quantization.levels import Levels, exponential_levels, fill_levels
from lqray.quantization.original import descended_levels, descended_multiplier

Method = Literal["alq", "alqg", "amq"]
Solver = Literal["newton", "coordinate", "original"]

_NEWTON_ITERATIONS = 60
_RELATIVE_TOLERANCE = 1e-13
_GRADIENT_SWEEPS = 30
_GRADIENT_RATE = 0.1
_COORDINATE_SWEEPS = 300
_COORDINATE_TOLERANCE = 1e-10
# Exponential levels of 2**-40 and below serve nobody, and soon are no float32 any more.
_SMALLEST_EXPONENT = 40.0
_LARGEST_MULTIPLIER = 0.999
# More levels than this are dense enough for the start of high-resolution theory to lie in the best basin.
_DENSE_LEVELS = 32


def solve_levels(
    distribution: TruncatedNormalMixture,
    bits: int,
    method: Method = "alq",
    initial: ArrayLike | None = None,
    solver: Solver = "newton",
    symmetric: bool = False,
) -> Levels:
    """Levels that minimize the expected variance: (2**bits,) float64, strictly increasing from -1 to 1.

    method: "alq", all inner levels at the minimum; "alqg", all inner levels by the paper's projected gradient descent
    from `initial` (30 sweeps, which need not reach it); "amq", exponential levels of the best multiplier.
    initial: current levels, by default the exponential ones; the result is never worse than they are.
    solver: of alq and amq: "newton", the best that there are, or "original", where the solvers of the paper's research
    code stop (`lqray.quantization.original`); of alq also "coordinate", the paper's coordinate descent from `initial`,
    slower.
    symmetric: only levels with l_j = -l_L-1-j; `initial` is then made symmetric first.
    Raises ValueError for bits outside 1..8, another method or solver, or `initial` that are no 2**bits levels.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}; allowed: 1 to 8")
    if (method, solver) not in _CANDIDATES:
        allowed = ", ".join(f"{m} with {s}" for m, s in _CANDIDATES)
        raise ValueError(f"method {method!r} with solver {solver!r}; allowed: {allowed}")
    best = exponential_levels(bits) if initial is None else np.array(initial, dtype=np.float64)
    if best.shape != (2**bits,) or best[0] != -1 or best[-1] != 1 or not np.all(np.diff(best) > 0):
        raise ValueError(f"initial is {best.tolist()}; allowed: {2**bits} levels, strictly increasing from -1 to 1")
    if symmetric:
        distribution, best = _mirrored(distribution), _symmetric(best)
    if bits == 1:
        return best
    least = distribution.expected_variance(best)
    for levels in _CANDIDATES[method, solver](distribution, best):
        candidate = _symmetric(levels) if symmetric else levels
        variance = distribution.expected_variance(candidate)
        if variance < least and np.all(np.diff(candidate.astype(np.float32)) > 0):
            best, least = candidate, variance
    return best


def _mirrored(distribution: TruncatedNormalMixture) -> TruncatedNormalMixture:
    """(F(r) + 1 - F(-r)) / 2, under which symmetric levels have the expected variance they have under F."""
    return TruncatedNormalMixture(
        np.concatenate([distribution.means, -distribution.means]),
        np.tile(distribution.sigmas, 2),
        np.tile(distribution.weights, 2),
    )


def _symmetric(levels: Levels) -> Levels:
    return 0.5 * (levels - levels[::-1])


def _by_newton(distribution: TruncatedNormalMixture, current: Levels) -> Iterator[Levels]:
    grid = _grid(distribution, current.size)
    moments = distribution.moments(grid)
    if current.size <= _DENSE_LEVELS:
        center = float(distribution.weights @ distribution.means)
        yield _newton(distribution, _chosen_levels(grid, moments, current.size, center))
    else:
        yield _newton(distribution, _spread_levels(grid, moments, current.size))


def _by_coordinate_descent(distribution: TruncatedNormalMixture, current: Levels) -> Iterator[Levels]:
    yield _coordinate_descent(distribution, current)


def _by_projected_gradient(distribution: TruncatedNormalMixture, current: Levels) -> Iterator[Levels]:
    yield _projected_gradient(distribution, current)


def _by_multiplier(distribution: TruncatedNormalMixture, current: Levels) -> Iterator[Levels]:
    yield exponential_levels(current.size.bit_length() - 1, _best_multiplier(distribution, current.size))


_CANDIDATES: dict[tuple[str, str], Callable[[TruncatedNormalMixture, Levels], Iterator[Levels]]] = {
    ("alq", "newton"): _by_newton,
    ("alq", "coordinate"): _by_coordinate_descent,
    ("alqg", "newton"): _by_projected_gradient,
    ("amq", "newton"): _by_multiplier,
    ("alq", "original"): descended_levels,
    ("amq", "original"): descended_multiplier,
}


def _grid(distribution: TruncatedNormalMixture, count: int) -> Levels:
    """Points where levels may start: from -1 to 1, dense within a few deviations of the components."""
    means, sigmas, weights = distribution.means, distribution.sigmas, distribution.weights
    center = float(weights @ means)
    spread = float(np.sqrt(weights @ (sigmas**2 + (means - center) ** 2)))
    half = np.sinh(np.linspace(0.0, np.arcsinh(2.0 / spread), max(64, 4 * count) + 1)[1:]) * spread
    order = np.argsort(means)
    share = np.cumsum(weights[order])
    some = order[np.searchsorted(share, np.linspace(0.0, 1.0, 18)[1:-1]).clip(max=order.size - 1)]
    around = (means[some, None] + sigmas[some, None] * np.array([-1.5, 0.0, 1.5])).ravel()
    grid = np.unique(np.clip(np.concatenate([center - half, [center], center + half, around]), -1.0, 1.0))
    inside = grid[(grid > -1.0) & (grid < 1.0)]
    return np.concatenate([[-1.0], inside, [1.0]])


def _spread_levels(grid: Levels, moments: Moments, count: int) -> Levels:
    """Levels of local density f**(1/3), optimal in the limit of many levels, where Psi is about the mean of
    f * spacing**2 / 6 (cf. Panter and Dite, 1951)."""
    width = np.diff(grid)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(moments.mass / width) * width)])
    uniform = np.linspace(-1.0, 1.0, count)
    if not mass[-1] > 0:
        return uniform
    levels = np.interp(0.5 + 0.5 * uniform, mass / mass[-1], grid)
    # A thousandth of the uniform levels keeps neighbours apart where the density vanishes.
    levels = 0.999 * levels + 0.001 * uniform
    levels[0], levels[-1] = -1.0, 1.0
    return np.asarray(levels)


def _chosen_levels(grid: Levels, moments: Moments, count: int, center: float) -> Levels:
    """The best levels among the points of the grid. Moments are taken around the center: far from it they cancel."""
    x = grid - center
    left = x[:-1]
    first = moments.first + left * moments.mass
    second = moments.second + 2.0 * left * moments.first + left**2 * moments.mass
    points = Points(x, *(np.concatenate([[0.0], np.cumsum(m)]) for m in (moments.mass, first, second)))
    return fill_levels(grid[choose_levels(points, count)], count)


def _newton(distribution: TruncatedNormalMixture, levels: Levels) -> Levels:
    moments = distribution.moments(levels)
    for _ in range(_NEWTON_ITERATIONS):
        variance = moments.expected_variance(levels)
        gradient, diagonal, beside = _derivatives(levels, moments)
        step = _descent_direction(gradient, diagonal, beside)
        slope = float(gradient @ step)
        if not -slope > _RELATIVE_TOLERANCE * variance or not np.isfinite(step).all():
            break
        moved = _line_search(distribution, levels, step, variance, slope)
        if moved is None:
            break
        levels, moments = moved
    return levels


def _derivatives(levels: Levels, moments: Moments) -> tuple[Levels, Levels, Levels]:
    """Gradient (L - 2,), diagonal (L - 2,) and first off-diagonal (L - 3,) of the Hessian, of the inner levels."""
    right = np.diff(levels) * moments.mass - moments.first
    diagonal = (levels[2:] - levels[:-2]) * moments.density[1:-1]
    return moments.first[:-1] - right[1:], diagonal, -moments.mass[1:-1]


def _descent_direction(gradient: Levels, diagonal: Levels, beside: Levels) -> NDArray[np.float64]:
    """The Newton step; where the Hessian is not positive definite, with its diagonal raised until it dominates."""
    from scipy.linalg import solveh_banded  # here, as in distribution.py

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
) -> tuple[Levels, Moments] | None:
    """The first of geometrically shorter steps that keeps the order of the levels and lowers the variance enough."""
    full = np.concatenate([[0.0], step, [0.0]])
    closing = -np.diff(full)
    gaps = np.diff(levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = float(np.min(np.where(closing > 0, gaps / closing, np.inf)))
    length = min(1.0, 0.9 * reach)
    for _ in range(40):
        candidate = levels + length * full
        moments = distribution.moments(candidate)
        if moments.expected_variance(candidate) <= variance + 1e-4 * length * slope:
            return candidate, moments
        length *= 0.5
    return None


def _coordinate_descent(distribution: TruncatedNormalMixture, levels: Levels) -> Levels:
    """The paper's ALQ: each level at its minimum between its neighbours, in turn,

        F(l_j) = F(l_j+1) - [integral (r - l_j-1) dF over (l_j-1, l_j+1)] / (l_j+1 - l_j-1)

    Every other level depends only on those between, so half of them move at a time.
    """
    levels = levels.copy()
    variance = distribution.expected_variance(levels)
    for _ in range(_COORDINATE_SWEEPS):
        for parity in (1, 2):
            inner = np.arange(parity, levels.size - 1, 2)
            if inner.size:
                levels[inner] = _best_between(distribution, levels, inner)
        before, variance = variance, distribution.expected_variance(levels)
        if not before - variance > _COORDINATE_TOLERANCE * variance:
            break
    return levels


def _best_between(distribution: TruncatedNormalMixture, levels: Levels, inner: NDArray[np.intp]) -> Levels:
    """Where the gradient of each inner level changes sign, its neighbours fixed; by bisection to the last bit."""
    below, above = levels[inner - 1], levels[inner + 1]
    low, high = below.copy(), above.copy()
    trial = levels.copy()
    for _ in range(60):
        trial[inner] = 0.5 * (low + high)
        gradient = _derivatives(trial, distribution.moments(trial))[0][inner - 1]
        rising = gradient > 0
        high = np.where(rising, trial[inner], high)
        low = np.where(rising, low, trial[inner])
    middle = 0.5 * (low + high)
    apart = (middle > below) & (middle < above)
    return np.where(apart, middle, levels[inner])


def _projected_gradient(distribution: TruncatedNormalMixture, levels: Levels) -> Levels:
    """The paper's ALQG: steps down the gradient, each at most half the gap to the nearer neighbour."""
    levels = levels.copy()
    for _ in range(_GRADIENT_SWEEPS):
        for parity in (1, 2):
            inner = np.arange(parity, levels.size - 1, 2)
            gradient = _derivatives(levels, distribution.moments(levels))[0][inner - 1]
            nearer = np.minimum(levels[inner] - levels[inner - 1], levels[inner + 1] - levels[inner])
            levels[inner] -= np.clip(_GRADIENT_RATE * gradient, -0.5 * nearer, 0.5 * nearer)
    return levels


def _best_multiplier(distribution: TruncatedNormalMixture, count: int) -> float:
    """AMQ: the p of least Psi(exponential levels of p), the middle cell included; bracketed on a grid, then Brent's
    bounded minimization."""
    from scipy.optimize import minimize_scalar  # here, as in distribution.py

    bits = count.bit_length() - 1
    low = 2.0 ** (-_SMALLEST_EXPONENT / max(1, count // 2 - 1))

    def variance(p: float) -> float:
        return distribution.expected_variance(exponential_levels(bits, p))

    grid = np.linspace(np.log(low), np.log(_LARGEST_MULTIPLIER), 24)
    values = [variance(float(np.exp(q))) for q in grid]
    k = int(np.argmin(values))
    bounds = (grid[max(k - 1, 0)], grid[min(k + 1, grid.size - 1)])
    found = minimize_scalar(
        lambda q: variance(float(np.exp(q))), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    best = float(found.x) if found.fun < values[k] else float(grid[k])
    return float(np.exp(best))
