"""Levels with slopes that lose least: the closed form of their variance, and a fit to a histogram.

A coordinate r in [l_j, l_j+1] goes up where u (g + c (1 - u)) < r - l_j, g = l_j+1 - l_j, c = (s_j - s_j+1) / 2, and
decodes to l + s (u - 1/2) of the level it went to. It goes up with probability f, of r - l_j = (g + c) f - c f^2, is
unbiased whatever the slopes, and with C = ((f - 1/2)^3 + 1/8) / 3

    Var(r) = (1 - f) l_j^2 + f l_j+1^2 + s_j^2 (1/12 - C) + s_j+1^2 C + f (1 - f) (l_j s_j - l_j+1 s_j+1) - r^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lqray.quantization.levels import Levels

Array = NDArray[np.float64]
Cells = NDArray[np.intp]

_STRETCH = 16 * np.log(2.0)
_STEEPEST = 0.98
"""Of what half the difference of neighbouring slopes may be of their gap, at most 1."""
_MOST_STEPS, _MOST_HALVINGS, _PAIRS, _LONGEST, _TOLERANCE = 60, 20, 9, 1.0, 1e-7
_SINHS = (0.5, 1.5, 2.5, 4.0)


@dataclass(frozen=True)
class Sloped:
    """levels: (L,) from -1 to 1. slopes: (L,), not negative. variance: expected, per normalized coordinate."""

    levels: Levels
    slopes: Array
    variance: float


def gaps_as_slopes(levels: Levels) -> Array:
    """Slopes of subtractive dither for uniform levels: the gap, at every level, (L,)."""
    return np.full(levels.size, (levels[-1] - levels[0]) / (levels.size - 1))


def variance_at(r: Array, levels: Levels, slopes: Array) -> Array:
    """Var of the coordinates r (m,) in [l_0, l_L-1], as of the module: (m,)."""
    cell, f = _positions(r, levels, slopes)
    return np.maximum(_second_moments(levels, slopes, cell, f) - r * r, 0.0)


def widest_error(levels: Levels, slopes: Array) -> float:
    """The largest |decoded - r| of any r and u, with what quadratics of u do between 33 points of a cell."""
    f = np.linspace(0.0, 1.0, 33)
    low, high = levels[:-1, None], levels[1:, None]
    s, after = slopes[:-1, None], slopes[1:, None]
    gap, curve = high - low, (s - after) / 2
    r = low + (gap + curve) * f - curve * f * f
    ends = [high - after / 2, high + after * (f - 0.5), low + s * (f - 0.5), low + s / 2]
    return float(max(np.abs(end - r).max() for end in ends))


def fit_slopes(points: Array, weights: Array, current: Sloped, common: bool = False) -> Sloped:
    """The best levels and slopes that are symmetric around zero, of as many levels as `current`, an even number.

    points, weights: (M,) of a distribution on [-1, 1]. common: one slope for all levels. Returns `current` with its
    variance where nothing better is found. L-BFGS from a few starts.
    """
    share = weights / weights.sum()
    known = float(share @ variance_at(points, current.levels, current.slopes))
    count = current.levels.size // 2
    x, w = _folded(points, share, max(384, 16 * count))
    problem = _Problem(x, w, count, common)
    starts = sorted(problem.starts(current), key=lambda z: problem.loss(z)[0])
    best = Sloped(current.levels, current.slopes, known)
    for start in starts[: 2 if count <= 8 else 1]:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # where Psi is next to nothing: what is not less is not taken
            levels, slopes = problem.whole(_descended(problem, start))
        if not np.all(np.diff(levels.astype(np.float32)) > 0):
            continue
        slopes = _allowed(levels, slopes)
        variance = float(share @ variance_at(points, levels, slopes))
        if variance < best.variance:
            best = Sloped(levels, slopes, variance)
    return best


def _descended(problem: _Problem, start: Array) -> Array:
    """The bottom of the start's basin, or near it: L-BFGS (Liu and Nocedal 1989) on log Psi, whose tolerances are those
    of Psi relative to itself. scipy's calls LAPACK, whose threads take longer to meet than all of this."""
    z, (value, gradient) = start, _logarithm(problem, start)
    pairs: list[tuple[Array, Array]] = []
    for _ in range(_MOST_STEPS):
        direction = _direction(gradient, pairs)
        if not direction @ gradient < 0:
            pairs, direction = [], -gradient
        size = min(1.0, _LONGEST / max(float(np.abs(direction).max()), 1e-300))
        for _ in range(_MOST_HALVINGS):
            after, (lower, turned) = z + size * direction, _logarithm(problem, z + size * direction)
            if lower <= value + 1e-4 * size * float(direction @ gradient):
                break
            size /= 2
        else:
            return z
        pairs = [*pairs[-_PAIRS:], (after - z, turned - gradient)]
        if pairs[-1][0] @ pairs[-1][1] <= 0:
            pairs.pop()
        gained, z, value, gradient = value - lower, after, lower, turned
        if gained < _TOLERANCE:
            break
    return z


def _logarithm(problem: _Problem, z: Array) -> tuple[float, Array]:
    value, gradient = problem.loss(z)
    positive = max(value, 1e-300)
    return float(np.log(positive)), gradient / positive


def _direction(gradient: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """Minus the approximate inverse Hessian of these (steps, changes of the gradient) times the gradient."""
    found, factors = -gradient, []
    for step, change in reversed(pairs):
        factors.append((step @ found) / (step @ change))
        found = found - factors[-1] * change
    if pairs:
        step, change = pairs[-1]
        found = found * ((step @ change) / (change @ change))
    for (step, change), factor in zip(pairs, reversed(factors), strict=True):
        found = found + (factor - (change @ found) / (step @ change)) * step
    return found


def _positions(r: Array, levels: Levels, slopes: Array) -> tuple[Cells, Array]:
    """(cell, probability to go up) of each r."""
    cell: Cells = np.clip(np.searchsorted(levels, r, side="right"), 1, levels.size - 1) - 1
    gap, curve = np.diff(levels)[cell], (slopes[:-1] - slopes[1:])[cell] / 2
    rest = np.clip(r - levels[cell], 0.0, gap)
    slope = gap + curve
    root = np.sqrt(np.maximum(slope * slope - 4 * curve * rest, 0.0))
    return cell, np.clip(2 * rest / np.maximum(slope + root, 1e-300), 0.0, 1.0)


def _second_moments(levels: Levels, slopes: Array, cell: Cells, f: Array) -> Array:
    a, b, p, q = levels[cell], levels[cell + 1], slopes[cell], slopes[cell + 1]
    cube = ((f - 0.5) ** 3 + 0.125) / 3
    moments: Array = (1 - f) * a * a + f * b * b + p * p * (1 / 12 - cube) + q * q * cube
    return moments + f * (1 - f) * (a * p - b * q)


def _allowed(levels: Levels, slopes: Array) -> Array:
    """The largest slopes below these of which neighbours differ by no more than two gaps, with a margin."""
    most, found = 2 * _STEEPEST * np.diff(levels), slopes.copy()
    for j in range(1, found.size):
        found[j] = min(found[j], found[j - 1] + most[j - 1])
    for j in range(found.size - 2, -1, -1):
        found[j] = min(found[j], found[j + 1] + most[j])
    return found


def _folded(points: Array, weights: Array, bins: int) -> tuple[Array, Array]:
    """The distribution of magnitudes as at most so many points, ascending, closer together near zero."""
    x = np.abs(points)
    at = np.minimum((np.arcsinh(x * np.sinh(_STRETCH)) / _STRETCH * bins).astype(np.int64), bins - 1)
    mass = np.bincount(at, weights, minlength=bins)
    first = np.bincount(at, weights * x, minlength=bins)
    kept = mass > 0
    found: Array = np.minimum(first[kept] / mass[kept], 1.0)
    return found, np.asarray(mass[kept], float)


class _Problem:
    """Psi as a function of logarithms: of the gaps from the centre, whose sum is 1, and of the slopes. The middle cell
    is [-p_0, p_0], so that half of all is enough."""

    def __init__(self, x: Array, weights: Array, count: int, common: bool) -> None:
        self._x, self._weights, self._count, self._common = x, weights, count, common
        self._energy = float(weights @ (x * x))

    def starts(self, current: Sloped) -> list[Array]:
        """Companded by the cube root of the density, which is best for many levels; by sinh; and what there is."""
        count = self._count
        ranks = (np.arange(count) + 0.5) / (count - 0.5)
        edges = np.concatenate([[0.0], (self._x[1:] + self._x[:-1]) / 2, [1.0]])
        widths = np.maximum(np.diff(edges), 1e-12)
        mass = np.concatenate([[0.0], np.cumsum(np.cbrt(self._weights / widths) * widths)])
        spaced = np.linspace(0.5, count - 0.5, count) / (count - 0.5)
        families = [np.interp(ranks * mass[-1], mass, edges), *(np.sinh(a * spaced) / np.sinh(a) for a in _SINHS)]
        found = []
        for positive in families:
            gaps = np.maximum(np.diff(positive, prepend=-positive[0]), 1e-7)
            local = (gaps + np.append(gaps[1:], gaps[-1])) / 2
            found.append(self._parameters(gaps, 0.8 * local))
        known = current.levels[count:]
        gaps = np.diff(known, prepend=-known[0])
        return [*found, self._parameters(gaps, np.maximum(current.slopes[count:], 1e-6 * gaps))]

    def _parameters(self, gaps: Array, slopes: Array) -> Array:
        slopes = np.exp(np.log(slopes).mean(keepdims=True)) if self._common else slopes
        return np.concatenate([np.log(gaps), np.log(slopes)])

    def _positive(self, z: Array) -> tuple[Array, float, Array, Array]:
        """(unscaled gaps, their sum, levels, slopes)."""
        gaps = np.exp(z[: self._count])
        levels = np.cumsum(gaps) - gaps[0] / 2
        total = float(levels[-1])
        levels = levels / total
        levels[-1] = 1.0
        return gaps, total, levels, np.exp(z[self._count :]) * np.ones(self._count)

    def whole(self, z: Array) -> tuple[Levels, Array]:
        """All levels and slopes, (L,)."""
        _, _, levels, slopes = self._positive(z)
        return np.concatenate([-levels[::-1], levels]), np.concatenate([slopes[::-1], slopes])

    def loss(self, z: Array) -> tuple[float, Array]:
        """Psi, and a penalty where slopes are too steep; the gradient by z."""
        gaps, total, levels, slopes = self._positive(z)
        value, by_level, by_slope = self._value(
            np.concatenate([-levels[:1], levels]), np.concatenate([slopes[:1], slopes])
        )
        tail = np.cumsum(by_level[::-1])[::-1]
        by_gap = tail.copy()
        by_gap[0] -= by_level.sum() / 2
        dot = float(by_level @ levels)
        by_gap -= dot
        by_gap[0] += dot / 2
        by_log = by_slope * slopes
        return value, np.concatenate([by_gap / total * gaps, [by_log.sum()] if self._common else by_log])

    def _value(self, l: Array, s: Array) -> tuple[float, Array, Array]:  # noqa: E741
        """l: levels from -p_0 on, s: their slopes. Psi with its gradients by those from p_0 on."""
        x, w, size = self._x, self._weights, l.size
        cell, f = _positions(x, l, s)
        a, b, p, q = l[cell], l[cell + 1], s[cell], s[cell + 1]
        gap, curve = np.diff(l), (s[:-1] - s[1:]) / 2
        cube, both, turn = ((f - 0.5) ** 3 + 0.125) / 3, f * (1 - f), 1 - 2 * f
        value = float(w @ _second_moments(l, s, cell, f)) - self._energy
        rate = np.maximum(gap[cell] + curve[cell] * turn, 1e-12 * gap[cell])  # of r by f
        k = (b * b - a * a + (q * q - p * p) * (f - 0.5) ** 2 + turn * (a * p - b * q)) / rate
        low = np.bincount(cell, w * (2 * (1 - f) * a + both * p - k * (1 - f)), minlength=size)
        high = np.bincount(cell + 1, w * (2 * f * b - both * q - k * f), minlength=size)
        low_slope = np.bincount(cell, w * (2 * p * (1 / 12 - cube) + both * (a - k / 2)), minlength=size)
        high_slope = np.bincount(cell + 1, w * (2 * q * cube - both * (b - k / 2)), minlength=size)
        by_level, by_slope = np.asarray(low + high, float), np.asarray(low_slope + high_slope, float)
        over = np.maximum(np.abs(curve) / gap - _STEEPEST, 0.0)
        if over.any():
            strength = 10 * self._energy
            value += strength * float(over @ over)
            by_gap = -2 * strength * over * np.abs(curve) / gap**2
            by_curve = strength * over * np.sign(curve) / gap
            by_level += np.append(0.0, by_gap) - np.append(by_gap, 0.0)
            by_slope += np.append(by_curve, 0.0) - np.append(0.0, by_curve)
        by_level[1] -= by_level[0]
        by_slope[1] += by_slope[0]
        return value, by_level[1:], by_slope[1:]
