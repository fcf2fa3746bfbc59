import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import truncnorm

from lqray.quantization import TruncatedNormalMixture
from lqray.quantization.levels import exponential_levels, uniform_levels

CASES = [
    ([0.0], [0.3], [1.0]),
    ([0.1, -0.2], [0.05, 0.4], [1.0, 3.0]),
    ([0.9, -0.95, 0.0], [0.2, 0.1, 1.5], [1.0, 1.0, 2.0]),
    ([0.001], [0.011], [1.0]),
]


def exact_pdf(means, sigmas, weights, x):
    total = sum(weights)
    return sum(
        w / total * truncnorm.pdf(x, (-1 - m) / s, (1 - m) / s, m, s)
        for m, s, w in zip(means, sigmas, weights, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_cdf_and_pdf_are_scipys(case):
    mixture = TruncatedNormalMixture(*case)
    x = np.linspace(-1, 1, 41)
    means, sigmas, weights = case
    cdf = sum(
        w * truncnorm.cdf(x, (-1 - m) / s, (1 - m) / s, m, s) for m, s, w in zip(means, sigmas, weights, strict=True)
    ) / sum(weights)
    np.testing.assert_allclose(mixture.cdf(x), cdf, atol=1e-12)
    np.testing.assert_allclose(mixture.pdf(x), exact_pdf(*case, x), rtol=1e-9, atol=1e-12)
    assert mixture.pdf(1.5) == 0
    assert mixture.cdf(-2.0) == 0
    assert mixture.cdf(2.0) == 1


@pytest.mark.parametrize("case", CASES)
def test_quantile_inverts_the_cdf(case):
    mixture = TruncatedNormalMixture(*case)
    p = np.linspace(0.001, 0.999, 31)
    np.testing.assert_allclose(mixture.cdf(mixture.quantile(p)), p, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("levels", [uniform_levels(2), exponential_levels(3), np.array([-1, -0.02, 0.01, 0.03, 1])])
def test_expected_variance_is_the_integral(case, levels):
    mixture = TruncatedNormalMixture(*case)
    means, sigmas, _ = case
    integral = 0.0
    for low, high in zip(levels[:-1], levels[1:], strict=True):
        breaks = [m + k * s for m, s in zip(means, sigmas, strict=True) for k in (-6, -2, 0, 2, 6)]
        points = sorted({low, high, *(b for b in breaks if low < b < high)})
        for a, b in zip(points[:-1], points[1:], strict=True):
            integral += quad(lambda r, lo=low, hi=high: (hi - r) * (r - lo) * exact_pdf(*case, r), a, b, epsabs=1e-14)[
                0
            ]
    assert mixture.expected_variance(levels) == pytest.approx(integral, rel=1e-8)


def test_known_values_of_fixed_levels():
    """NMSE = d * Psi of QSGD and NUQSGD at 3 bits on Gaussian buckets of 8192."""
    normal = TruncatedNormalMixture([0.0], [8192**-0.5])
    assert 8192 * normal.expected_variance(uniform_levels(3)) == pytest.approx(166.2, abs=0.05)
    assert 8192 * normal.expected_variance(exponential_levels(3)) == pytest.approx(127.0, abs=0.05)


@pytest.mark.parametrize(
    ("means", "sigmas", "weights"),
    [([], [], []), ([0.0], [-1.0], [1.0]), ([0.0], [1.0], [0.0]), ([np.nan], [1.0], [1.0]), ([0.0, 1.0], [1.0], [1.0])],
)
def test_bad_mixtures_raise(means, sigmas, weights):
    with pytest.raises(ValueError, match="means|sigmas"):
        TruncatedNormalMixture(means, sigmas, weights)
