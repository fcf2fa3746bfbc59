import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.quantization import TruncatedNormalMixture, solve_levels
from lqray.quantization.dynamic_program import Points, choose_levels
from lqray.quantization.levels import exponential_levels, uniform_levels
from lqray.quantization.original import descended_levels, descended_multiplier
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


MIXTURE = TruncatedNormalMixture([0.01, -0.02, 0.0], [0.01, 0.03, 0.1], [3.0, 2.0, 1.0])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_coordinate_descent_ends_where_newton_does(bits):
    newton = MIXTURE.expected_variance(solve_levels(MIXTURE, bits))
    coordinate = MIXTURE.expected_variance(solve_levels(MIXTURE, bits, solver="coordinate"))
    assert newton <= coordinate * (1 + 1e-9)
    assert coordinate <= newton * 1.001


def test_the_projected_gradient_descends_from_the_levels_given():
    levels = uniform_levels(3)
    for _ in range(5):
        better = solve_levels(MIXTURE, 3, "alqg", initial=levels)
        assert MIXTURE.expected_variance(better) < MIXTURE.expected_variance(levels)
        levels = better
    assert MIXTURE.expected_variance(levels) >= MIXTURE.expected_variance(solve_levels(MIXTURE, 3))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_multiplier_of_a_fine_grid_is_better_than_amqs(bits):
    levels = solve_levels(MIXTURE, bits, "amq")
    multiplier = levels[-2]
    np.testing.assert_allclose(levels, exponential_levels(bits, multiplier))
    grid = np.linspace(0.05, 0.995, 500)
    best = min(MIXTURE.expected_variance(exponential_levels(bits, p)) for p in grid)
    assert MIXTURE.expected_variance(levels) <= best * (1 + 1e-9)


@pytest.mark.parametrize(("d", "nmse"), [(8192, 0.527), (16384, 0.593)])
def test_known_optimum_of_amq(d, nmse):
    normal = TruncatedNormalMixture([0.0], [d**-0.5])
    assert d * normal.expected_variance(solve_levels(normal, 3, "amq")) == pytest.approx(nmse, abs=5e-4)


@pytest.mark.parametrize("case", ORIGINAL, ids=lambda case: f"{case['bits']}bits-{case['bucket_size']}-{case['case']}")
def test_amq_is_never_worse_than_the_original_implementation(case):
    for name in ("amq_nb", "amq_nl"):
        distribution = (
            TruncatedNormalMixture(case["means"], case["sigmas"], case["norms"])
            if name == "amq_nb"
            else TruncatedNormalMixture([case["nl_mean"]], [case["nl_sigma"]])
        )
        theirs = exponential_levels(case["bits"], case["results"][name]["multiplier"])
        ours = solve_levels(distribution, case["bits"], "amq")
        assert distribution.expected_variance(ours) <= distribution.expected_variance(theirs) * (1 + 1e-6)


@pytest.mark.parametrize("case", ORIGINAL, ids=lambda case: f"{case['bits']}bits-{case['bucket_size']}-{case['case']}")
def test_the_originals_own_figures_of_its_levels(case):
    """Its expected variance comes from a histogram, good to about 1e-3; below half a bin of it, to that."""
    for name, result in case["results"].items():
        if "levels" in result and "_nb" in name:
            ours = mixture_of(case, name).expected_variance(result["levels"])
            assert ours == pytest.approx(result["variance"], rel=2e-3, abs=2e-8), name


@pytest.mark.parametrize("bits", range(2, 9))
def test_within_reach_of_an_exact_choice_among_many_points(bits):
    """Brute force: the best levels among 6,000 points, which the best levels anywhere beat by little."""
    core = np.sinh(np.linspace(-1, 1, 5999) * np.arcsinh(1e3)) / 1e3
    edges = np.unique(np.concatenate([[-1.0], core, [1.0]]))
    moments = MIXTURE.moments(edges)
    left = edges[:-1]
    cumulative = [
        np.concatenate([[0.0], np.cumsum(m)])
        for m in (
            moments.mass,
            moments.first + left * moments.mass,
            moments.second + 2 * left * moments.first + left**2 * moments.mass,
        )
    ]
    best = edges[choose_levels(Points(edges, *cumulative), 2**bits)]
    ours = MIXTURE.expected_variance(solve_levels(MIXTURE, bits))
    assert ours <= MIXTURE.expected_variance(best) * (1 + (1e-6 if bits <= 4 else 1e-4))


PUBLISHED = [("alq", 8192, 0.396), ("alq", 16384, 0.453), ("amq", 8192, 1.18), ("amq", 16384, 1.94)]


@pytest.mark.parametrize(("method", "d", "nmse"), PUBLISHED)
def test_the_original_solvers_end_where_the_papers_runs_did(method, d, nmse):
    """3 bits, normal buckets: the error of those runs' levels, known to two digits; 1.8 to 3.3 times the least."""
    normal = TruncatedNormalMixture([0.0], [d**-0.5])
    found = d * normal.expected_variance(solve_levels(normal, 3, method, solver="original"))
    assert found == pytest.approx(nmse, rel=0.02)
    assert found > 1.7 * d * normal.expected_variance(solve_levels(normal, 3, method))


def test_the_levels_of_the_papers_resnet_32():
    """Published: alq .0046 .0178 .1257 1 and amq .0127 .0543 .233 1, of buckets that are not quite normal."""
    normal = TruncatedNormalMixture([0.0], [16384**-0.5])
    alq = solve_levels(normal, 3, "alq", solver="original")
    np.testing.assert_allclose(alq[4:], [0.0046, 0.0178, 0.1257, 1.0], rtol=0.06)
    np.testing.assert_allclose(
        solve_levels(normal, 3, "amq", solver="original")[4:], [0.0127, 0.0543, 0.233, 1.0], rtol=0.03
    )


SETTLED = [case for case in ORIGINAL if case["bits"] == 4]


@pytest.mark.parametrize("case", SETTLED, ids=lambda case: f"{case['bucket_size']}-{case['case']}")
def test_the_original_descent_to_where_it_was_recorded(case):
    """From exponential levels, where its steps are short enough to settle; it took differences, not derivatives."""
    *_, ours = descended_levels(mixture_of(case, "alq_nb"), exponential_levels(4))
    np.testing.assert_allclose(ours, case["results"]["alq_nb_gd_exp"]["levels"], atol=5e-4)


@pytest.mark.parametrize("case", SETTLED, ids=lambda case: f"{case['bucket_size']}-{case['case']}")
def test_the_original_multiplier_is_one_of_those_it_was_recorded_to_choose_from(monkeypatch, case):
    """Of its seven starts, that at .5 was recorded."""
    monkeypatch.setattr("lqray.quantization.original._MULTIPLIERS", ())
    for name in ("amq_nb", "amq_nl"):
        (levels,) = descended_multiplier(mixture_of(case, name), exponential_levels(4))
        assert levels[-2] == pytest.approx(case["results"][name]["multiplier"], abs=1e-7)


def test_the_original_solvers_keep_the_levels_where_their_steps_do_not_settle():
    """2 bits and buckets of 8192: the curvature is 12 times what a step of rate 1 settles at."""
    normal = TruncatedNormalMixture([0.0], [8192**-0.5])
    good = solve_levels(normal, 2)
    np.testing.assert_array_equal(solve_levels(normal, 2, initial=good, solver="original"), good)


@pytest.mark.parametrize("method", ["alq", "alqg", "amq"])
def test_symmetric_levels(method):
    levels = solve_levels(MIXTURE, 3, method, symmetric=True)
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert MIXTURE.expected_variance(levels) <= MIXTURE.expected_variance(exponential_levels(3))
    if method == "alq":
        free = MIXTURE.expected_variance(solve_levels(MIXTURE, 3))
        assert free <= MIXTURE.expected_variance(levels)
        wiggled = levels + np.array([0, 1, -1, 2, -2, 1, -1, 0]) * 1e-4
        assert MIXTURE.expected_variance(0.5 * (wiggled - wiggled[::-1])) > MIXTURE.expected_variance(levels)


@pytest.mark.parametrize(("components", "bits"), [(1, 1), (1, 3), (1000, 1), (1000, 6), (20_000, 2)])
def test_any_number_of_components(components, bits):
    random = np.random.default_rng(components)
    mixture = TruncatedNormalMixture(
        random.uniform(-1, 1, components), 10.0 ** random.uniform(-12, 1, components), random.random(components)
    )
    start = exponential_levels(bits)
    levels = solve_levels(mixture, bits, initial=start)
    assert mixture.expected_variance(levels) <= mixture.expected_variance(start)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.3, 1.0]), st.sampled_from([0.0, 1e-12, 1e-3, 10.0])), min_size=1),
    st.integers(1, 4),
    st.sampled_from(
        [
            *(("alq", "newton"), ("alq", "coordinate"), ("alq", "original")),
            *(("alqg", "newton"), ("amq", "newton"), ("amq", "original")),
        ]
    ),
    st.booleans(),
)
def test_every_solver_takes_degenerate_statistics(components, bits, solver, symmetric):
    means, sigmas = map(np.array, zip(*components, strict=True))
    mixture = TruncatedNormalMixture(means, sigmas)
    initial = exponential_levels(bits)
    method, how = solver
    levels = solve_levels(mixture, bits, method, initial, how, symmetric)
    assert np.all(np.diff(levels.astype(np.float32)) > 0)
    assert mixture.expected_variance(levels) <= mixture.expected_variance(initial) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "amq", "solver": "coordinate"}, "allowed: alq with newton"),
        ({"method": "alqq"}, "allowed: alq with newton"),
        ({"initial": [-1, 0, 1]}, "8 levels"),
        ({"initial": np.zeros(8)}, "strictly increasing"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve_levels(MIXTURE, 3, **arguments)
