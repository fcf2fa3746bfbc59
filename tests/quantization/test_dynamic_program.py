import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.quantization import dynamic_program
from lqray.quantization.dynamic_program import Points, choose_levels
from lqray.quantization.histogram import Histogram
from lqray.quantization.levels import exponential_levels, uniform_levels


def variance_of(levels, x, weights):
    above = np.clip(np.searchsorted(levels, x, side="right"), 1, len(levels) - 1)
    return float(np.sum(weights * (levels[above] - x) * (x - levels[above - 1])))


def random_points(size, seed):
    random = np.random.default_rng(seed)
    x = np.sort(np.unique(np.concatenate([[-1.0, 1.0], np.tanh(random.normal(0, 0.3, size - 2))])))
    return x, random.exponential(size=x.size) * (random.random(x.size) < 0.8)


@settings(max_examples=60)
@given(st.integers(3, 11), st.integers(2, 6), st.integers(0, 10**6))
def test_no_subset_is_better(size, count, seed):
    x, weights = random_points(size, seed)
    chosen = choose_levels(Points.of(x, weights), count)
    assert chosen[0] == 0
    assert chosen[-1] == x.size - 1
    assert len(chosen) <= count
    found = variance_of(x[chosen], x, weights)
    inner = range(1, x.size - 1)
    subsets = itertools.combinations(inner, min(count, x.size) - 2)
    best = min(variance_of(x[[0, *subset, x.size - 1]], x, weights) for subset in subsets)
    assert found == pytest.approx(best, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("size", "count"), [(700, 8), (1500, 5), (513, 256), (1024, 3)])
def test_the_fast_search_finds_what_the_full_matrix_finds(monkeypatch, size, count):
    x, weights = random_points(size, count)
    fast = choose_levels(Points.of(x, weights), count)
    monkeypatch.setattr(dynamic_program, "_DENSE", 10**6)
    full = choose_levels(Points.of(x, weights), count)
    assert variance_of(x[fast], x, weights) == pytest.approx(variance_of(x[full], x, weights), rel=1e-9)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6))
def test_optimal_levels_of_a_small_histogram_beat_a_brute_force_search(size, bits, seed):
    """No levels anywhere, on points or between them, are better."""
    random = np.random.default_rng(seed)
    r = np.sort(random.uniform(-1, 1, size))
    weights = random.exponential(size=size) + 1e-3
    histogram = Histogram(np.arange(size, dtype=float), weights, r * weights)
    levels = histogram.optimal_levels(bits, exponential_levels(bits))
    ours = histogram.expected_variance(levels)
    assert np.all(np.diff(levels) > 0)
    grid = np.unique(np.concatenate([r, np.linspace(-0.9, 0.9, 7)]))
    inner = 2**bits - 2
    if 0 < inner <= grid.size:
        subsets = itertools.islice(itertools.combinations(grid, inner), 5000)
        best = min(histogram.expected_variance(np.array([-1.0, *subset, 1.0])) for subset in subsets)
        assert ours <= best * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_optimal_levels_keep_what_is_given_when_nothing_is_better(bits):
    current = uniform_levels(bits)
    assert Histogram.empty().optimal_levels(bits, current) is current
    at_a_level = Histogram(np.zeros(1), np.ones(1), current[-1:])
    assert at_a_level.optimal_levels(bits, current) is current
