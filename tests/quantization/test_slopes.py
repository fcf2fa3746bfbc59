"""Levels with slopes and subtractive dither: known answers, the closed form beside roundings, phases, the fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lqray.experiment.feedback import contraction_problem
from lqray.experiment.options.quantizer import SlopesOptions
from lqray.quantization import Quantizer, create
from lqray.quantization.levels import uniform_levels
from lqray.quantization.place import Place
from lqray.quantization.slope_solver import (
    Sloped,
    _Problem,
    fit_slopes,
    gaps_as_slopes,
    variance_at,
    widest_error,
)
from lqray.testing import compressor_suite

Test_one_bit = compressor_suite("slopes", bits=1, bucket_size=64)
Test_common = compressor_suite("slopes", bits=4, slope="common", bucket_size=100)
Test_tail = compressor_suite("dither", bits=4, bucket_size=1000, tail="full_precision")
Test_rotated = compressor_suite("dither", bucket_size=64, rotation="hadamard")


def gaussian(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def nmse(quantizer, x: torch.Tensor, seed: int = 1) -> float:
    decoded = quantizer.decode(quantizer.encode(x, seed=seed, offset=seed))
    return float((decoded - x).double().square().sum() / x.double().square().sum())


@pytest.fixture(scope="module")
def fitted():
    """By bits: to 256 Gaussian buckets of 8192."""
    x = gaussian(256 * 8192)
    found = {}
    for bits in (1, 2, 3, 4):
        found[bits] = Quantizer.create("slopes", bits=bits)
        found[bits].observe(x)
        assert found[bits].update_levels()
    return found


@pytest.mark.parametrize(("bits", "expected"), [(1, 4.40), (2, 0.3148), (3, 0.0538), (4, 0.01155)])
def test_known_answers_of_one_normal(fitted, bits, expected):
    """At d = 8192, within 2%; of a fresh sample of as many buckets, whose largest magnitudes leave about 0.5%."""
    assert nmse(fitted[bits], gaussian(256 * 8192, seed=9)) == pytest.approx(expected, rel=0.02)


def test_known_levels_and_slopes_of_three_bits(fitted):
    np.testing.assert_allclose(fitted[3].levels[4:], [0.0782, 0.2459, 0.4648, 1], rtol=0.02)
    np.testing.assert_allclose(fitted[3].slopes[4:], [0.158, 0.183, 0.268, 0.906], rtol=0.02)
    np.testing.assert_array_equal(fitted[3].slopes, fitted[3].slopes.flip(0))


def test_a_common_slope_is_six_k_and_gains_three_k_squared():
    """K = sum of P_j / g_j, P_j an interval's share of Psi: sigma = 6 K, and Psi falls by 3 K^2."""
    x = gaussian(64 * 8192)
    quantizer = create("slopes", bits=3, slope="common")
    quantizer.observe(x)
    histogram = quantizer.statistics
    quantizer.update_levels()
    levels, slopes = quantizer.exact_levels, quantizer.parameters()[8:16]
    r, share = histogram.points, histogram.weights / histogram.weights.sum()
    cell = np.clip(np.searchsorted(levels, r, side="right"), 1, 7)
    psi = share * (levels[cell] - r) * (r - levels[cell - 1])
    k = float((psi / np.diff(levels)[cell - 1]).sum())
    np.testing.assert_allclose(slopes, 6 * k, rtol=1e-3)
    assert quantizer.expected_variance == pytest.approx(psi.sum() - 3 * k * k, rel=1e-5)


def test_a_uniform_distribution_gets_subtractive_dither():
    r = np.linspace(-1, 1, 4001)
    for bits, excess in ((2, 1.002), (3, 1.002), (8, 1.05)):
        levels = uniform_levels(bits)
        start = Sloped(levels, 0.3 * gaps_as_slopes(levels), 0.0)
        found = fit_slopes(r, np.ones(r.size), start)
        gap = 2 / (2**bits - 1)
        assert found.variance <= gap**2 / 12 * excess
        assert found.variance == pytest.approx(float(variance_at(r, found.levels, found.slopes).mean()))


def test_the_gradient_of_the_fit_is_that_of_its_value():
    generator = np.random.default_rng(0)
    x = np.sort(generator.uniform(0, 1, 60))
    for common in (False, True):
        problem = _Problem(x, np.full(60, 1 / 60), 4, common)
        for _ in range(5):  # with slopes that are too steep among them
            z = generator.normal(0, 0.7, 5 if common else 8)
            step = 1e-6 * np.eye(z.size)
            numeric = [(problem.loss(z + each)[0] - problem.loss(z - each)[0]) / 2e-6 for each in step]
            np.testing.assert_allclose(problem.loss(z)[1], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("bits", "power"), [(1, 1), (2, 9), (3, 1), (3, 3), (3, 9), (5, 9), (8, 1), (8, 3)])
def test_a_fit_is_allowed_and_better_than_dither_and_than_the_best_levels(bits, power):
    """However heavy the tails; and roundings have the variance of the closed form."""
    x = gaussian(128 * 512).pow(power)
    quantizer = create("slopes", bits=bits, bucket_size=512)
    before = nmse(quantizer, x)
    quantizer.observe(x)
    histogram = quantizer.statistics
    assert quantizer.update_levels()
    curves = (quantizer.slopes[:-1] - quantizer.slopes[1:]).abs() / 2
    assert torch.all(curves <= quantizer.levels.diff())
    best = histogram.expected_variance(histogram.optimal_levels(bits, uniform_levels(bits)))
    assert quantizer.expected_variance <= best * 1.0001
    errors = [nmse(quantizer, x, seed) for seed in range(4)]
    assert np.mean(errors) < before
    rows = x.double().view(-1, 512)
    norms = rows.abs().amax(dim=1)
    expected = quantizer.expected_variance * 512 * float(norms.square().sum() / rows.square().sum())
    assert np.mean(errors) == pytest.approx(expected, rel=0.1)
    quantizer.observe(x)
    assert not quantizer.update_levels() or quantizer.expected_variance <= expected


def test_what_nothing_can_be_fitted_to_changes_nothing():
    for x in (torch.zeros(640), torch.full((640,), float("nan")), torch.empty(0)):
        quantizer = create("slopes", bucket_size=64)
        before = quantizer.fingerprint()
        quantizer.observe(x)
        assert quantizer.update_levels() is False
        assert quantizer.fingerprint() == before
    quantizer.observe(torch.ones(640))  # all on the last level: no slope is best
    quantizer.update_levels()
    assert nmse(quantizer, torch.ones(640)) < 1e-6


def test_workers_round_with_evenly_spaced_phases_of_one_stream():
    """The phase travels, is counted, and is all that differs; known W makes equal gradients' errors cancel."""
    x, quantizer = gaussian(64 * 512), create("dither", bits=3, bucket_size=512)
    payloads = [quantizer.encode_at(x, Place(w, 4), seed=w, offset=7) for w in range(4)]
    phases = [int(payload.buffer[-4:].clone().view(torch.int32)) % 2**32 for payload in payloads]
    assert phases == [0, 2**30, 2**31, 3 * 2**30]
    assert payloads[0].nbytes == 4 * 64 + 64 * 512 * 3 // 8 + 4
    mean = quantizer.decode_mean(torch.stack([payload.buffer for payload in payloads]), payloads[0])
    single = float((quantizer.decode(payloads[1]) - x).square().sum())
    # Errors u - 1/2 at four places a quarter of a turn apart add up to that of one of a quarter of the gap.
    assert float((mean - x).square().sum()) == pytest.approx(single / 16, rel=0.05)
    other = quantizer.encode_at(x, Place(0, 4, part=1), seed=0, offset=7)
    assert not torch.equal(other.buffer, payloads[0].buffer)
    assert nmse(quantizer, x) == pytest.approx(nmse(quantizer, x, seed=2**64 - 5), rel=0.05)


def test_a_payload_decodes_alike_alone_and_among_others():
    x, quantizer = gaussian(1000), create("slopes", bits=5, bucket_size=300)
    rows = [quantizer.encode_at(x, Place(w, 3, part=2), seed=w, offset=9) for w in range(3)]
    like = rows[0]
    for row in rows:
        alone = quantizer.decode(replace(like, buffer=row.buffer))
        assert torch.equal(alone, quantizer.decode_mean(row.buffer[None], like))
        assert torch.equal(alone, quantizer.decode(row))


def test_payloads_of_levels_alone_are_refused():
    plain = create("qsgd_inf", bucket_size=64).encode(torch.ones(64), seed=0, offset=0)
    with pytest.raises(ValueError, match="has no phase"):
        create("dither", bucket_size=64).decode(plain)


def test_the_largest_error_is_bounded_where_it_is_said_to_be():
    assert widest_error(uniform_levels(3), gaps_as_slopes(uniform_levels(3))) == pytest.approx(1 / 7)
    assert create("dither", bits=2).bounded
    one_bit = create("dither", bits=1)
    assert "1 times the largest magnitude" in one_bit.why_no_contraction()
    assert one_bit.why_no_contraction() == contraction_problem(one_bit.options)  # also when a file is read
    fitted = create("slopes", bits=3, bucket_size=64)
    x = gaussian(6400)
    fitted.observe(x)
    fitted.update_levels()
    most = widest_error(fitted.exact_levels, fitted.parameters()[8:16])
    error = (fitted.decode(fitted.encode(x, seed=1, offset=1)) - x).view(-1, 64).abs()
    found = float((error.amax(1) / x.view(-1, 64).abs().amax(1)).max())
    assert 0.5 * most < found <= most * 1.0001


def test_levels_and_slopes_of_one_bit_adapt():
    options = SlopesOptions(method="slopes", bits=1)
    assert create("slopes", bits=1).adapts
    assert not create("slopes", bits=1, update_at=[], update_every=0).adapts
    assert options.slope == "level"
