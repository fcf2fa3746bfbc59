import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.quantization import TruncatedNormalMixture, solve_levels
from lqray.quantization.levels import exponential_levels, uniform_levels
from lqray.quantization.solvers import _derivatives

ORIGINAL = json.loads((Path(__file__).parent / "original_levels.json").read_text())["cases"]


def mixture_of(case, result):
    """The distribution that the original implementation solved for: all components, or one pooled normal."""
    if "_nb" in result:
        return TruncatedNormalMixture(case["means"], case["sigmas"], case["norms"])
    return TruncatedNormalMixture([case["nl_mean"]], [case["nl_sigma"]])


@pytest.mark.parametrize("case", ORIGINAL, ids=lambda case: f"{case['bits']}bits-{case['bucket_size']}-{case['case']}")
def test_never_worse_than_the_original_implementation(case):
    for name, result in case["results"].items():
        if "levels" in result:
            distribution = mixture_of(case, name)
            theirs = distribution.expected_variance(result["levels"])
            ours = distribution.expected_variance(solve_levels(distribution, case["bits"]))
            assert ours <= theirs * (1 + 1e-6), name


@pytest.mark.parametrize(("d", "nmse"), [(8192, 0.2233), (16384, 0.2291)])
def test_known_optimum_of_gaussian_buckets(d, nmse):
    normal = TruncatedNormalMixture([0.0], [d**-0.5])
    levels = solve_levels(normal, 3)
    assert d * normal.expected_variance(levels) == pytest.approx(nmse, abs=1e-4)
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-7)


def test_derivatives_are_those_of_the_expected_variance():
    mixture = TruncatedNormalMixture([0.1, -0.2], [0.1, 0.4], [1.0, 2.0])
    levels = np.array([-1, -0.5, -0.1, 0.05, 0.3, 1.0])
    gradient, diagonal, beside = _derivatives(levels, mixture.moments(levels))
    step = 1e-5
    for j in range(1, 5):
        moved = [levels.copy(), levels.copy()]
        moved[0][j] += step
        moved[1][j] -= step
        numeric = (mixture.expected_variance(moved[0]) - mixture.expected_variance(moved[1])) / (2 * step)
        assert gradient[j - 1] == pytest.approx(numeric, rel=1e-6)
        rows = [_derivatives(m, mixture.moments(m))[0] for m in moved]
        numeric_row = (rows[0] - rows[1]) / (2 * step)
        assert diagonal[j - 1] == pytest.approx(numeric_row[j - 1], rel=1e-6)
        if j < 4:
            assert beside[j - 1] == pytest.approx(numeric_row[j], rel=1e-6)


def test_brute_force_over_a_grid_finds_nothing_better():
    """Two bits: every pair of inner levels on a grid of 400."""
    mixture = TruncatedNormalMixture([0.02, -0.1], [0.05, 0.2], [1.0, 1.0])
    ours = mixture.expected_variance(solve_levels(mixture, 2))
    grid = np.linspace(-1, 1, 401)[1:-1]
    best = min(mixture.expected_variance([-1, a, b, 1]) for i, a in enumerate(grid) for b in grid[i + 1 :: 3])
    assert ours <= best * (1 + 1e-9)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(-12, 1).map(lambda e: 10.0**e), st.floats(0, 10)), min_size=1, max_size=30
    ),
    st.integers(1, 5),
    st.integers(0, 2),
)
def test_any_statistics_give_valid_levels_no_worse_than_those_given(components, bits, start):
    means, sigmas, weights = map(np.array, zip(*components, strict=True))
    if not weights.any():
        weights = weights + 1.0
    try:
        mixture = TruncatedNormalMixture(means, sigmas, weights)
    except ValueError:
        return  # no component has mass inside [-1, 1]
    initial = [exponential_levels(bits), uniform_levels(bits), exponential_levels(bits, 0.9)][start]
    levels = solve_levels(mixture, bits, initial=initial)
    assert levels.shape == (2**bits,)
    assert levels[0] == -1
    assert levels[-1] == 1
    assert np.all(np.diff(levels.astype(np.float32)) > 0)
    assert mixture.expected_variance(levels) <= mixture.expected_variance(initial)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="1 to 8"):
        solve_levels(TruncatedNormalMixture([0], [1]), bits)
