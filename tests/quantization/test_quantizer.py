"""The contract of every method that sends codes."""

import math

import numpy as np
import pytest
import torch

from lqray.quantization import BucketStatistics, Histogram, Quantizer
from lqray.quantization.entropy import huffman_bits
from lqray.quantization.schedule import UpdateSchedule
from lqray.quantization.statistics import bucket_statistics
from tests.testing.methods import ADAPTIVE, LEVELS

METHODS = LEVELS
FITTED = [name for name in ADAPTIVE if name in LEVELS]


def gaussian(n=64 * 256, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 1e-3


def nmse(quantizer, x, seed=1):
    error = quantizer.decode(quantizer.encode(x, seed=seed, offset=0)) - x.reshape(-1)
    return float(error.double().square().sum() / x.double().square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_in_range_and_levels_decode_exactly(method, bits):
    quantizer = Quantizer.create(method, bits=bits, bucket_size=32)
    payload = quantizer.encode(gaussian(1000), seed=1, offset=2)
    planes = 2 if method == "terngrad" else bits
    assert int(payload.codes.max()) < len(quantizer.levels) <= 2**planes
    assert payload.nbytes == 4 * math.ceil(1000 / 32) + 4 * planes * math.ceil(1000 / 32)
    # Coordinates that are levels times the norm come back exactly. The first bucket of a linf norm has norm 1.
    assert quantizer.levels[0] == -1
    if quantizer.coding.norm == "linf":
        on_levels = quantizer.levels[:32]
    else:
        on_levels = torch.zeros(32)
        on_levels[5] = -1.0
        on_levels = on_levels if 0.0 in quantizer.levels else on_levels[5:6]
    assert torch.equal(quantizer.decode(quantizer.encode(on_levels, seed=1, offset=2)), on_levels)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_unbiased(method, scale):
    """1.6 million roundings; mean error of each of 64 coordinates within 5.5 standard errors (error rate 2e-6)."""
    quantizer = Quantizer.create(method, bucket_size=64)
    x = gaussian(64).mul(scale)
    repeats = 25_000
    decoded = quantizer.decode(quantizer.encode(x.repeat(repeats), seed=3, offset=4)).view(repeats, 64).double()
    bias, spread = decoded.mean(dim=0) - x.double(), decoded.std(dim=0)
    assert torch.all(bias.abs() <= 5.5 * spread / math.sqrt(repeats))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("bucket_size", [1, 64, 8192])
def test_any_size(method, n, bucket_size):
    quantizer = Quantizer.create(method, bucket_size=bucket_size)
    x = gaussian(n)
    decoded = quantizer.decode(quantizer.encode(x, seed=1, offset=2))
    assert decoded.shape == (n,)
    assert decoded.isfinite().all()
    quantizer.observe(x)
    quantizer.update_levels()
    assert quantizer.levels[0] == -1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decoding_restores_the_dtype(method, dtype):
    quantizer = Quantizer.create(method, bucket_size=64)
    assert quantizer.decode(quantizer.encode(gaussian(100).to(dtype), seed=1, offset=2)).dtype == dtype


def expected_variance_of(quantizer, statistics, levels):
    """Psi of levels under the distribution that the method fits."""
    if isinstance(statistics, Histogram):
        return statistics.expected_variance(levels)
    normless = quantizer.options.method.endswith("_n")
    distribution = statistics.normal() if normless else statistics.mixture(quantizer.options.components)
    return distribution.expected_variance(levels)


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_updated_levels_lower_the_error_to_the_expected_variance(method, bits):
    """Data of the fitted distribution: Gaussian buckets of 8192, 64 components."""
    options = {} if method.endswith("_n") or method.startswith("optimal") else {"components": 64}
    quantizer = Quantizer.create(method, bits=bits, bucket_size=8192, **options)
    x = gaussian(64 * 8192)
    before = nmse(quantizer, x)
    quantizer.observe(x)
    statistics = quantizer.statistics
    assert quantizer.update_levels()
    rows = x.double().view(-1, 8192)
    norms = rows.abs().amax(dim=1, keepdim=True) if quantizer.coding.norm == "linf" else rows.norm(dim=1, keepdim=True)
    r = (rows / norms).numpy()
    levels = quantizer.exact_levels
    j = np.clip(np.searchsorted(levels, r, side="right") - 1, 0, len(levels) - 2)
    variance = (levels[j + 1] - r) * (r - levels[j])
    psi = expected_variance_of(quantizer, statistics, levels)
    assert np.mean(variance) == pytest.approx(psi, rel=0.02)
    # The roundings themselves: NMSE = d * Psi for l2 norms, with the norms' own scale for others.
    scale = float((norms.square() * 8192).sum() / rows.square().sum())
    measured = np.array([nmse(quantizer, x, seed) for seed in range(12)])
    exact = float((norms.square().numpy() * variance).sum() / rows.square().sum())
    assert exact == pytest.approx(scale * psi, rel=0.02)
    assert abs(measured.mean() - exact) <= 5 * measured.std(ddof=1) / math.sqrt(12)
    assert measured.mean() < before


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_optimal_is_the_yardstick_of_all_l2_methods(bits):
    """On heavy-tailed data of buckets of unlike size, where no normal fits."""
    x = torch.randn(32 * 1024, generator=torch.Generator().manual_seed(5)).pow(3)
    x = x * torch.logspace(-3, 0, 32).repeat_interleave(1024)
    errors = {}
    for method in FITTED:
        quantizer = Quantizer.create(method, bits=bits, bucket_size=1024)
        quantizer.observe(x)
        quantizer.update_levels()
        if quantizer.coding.norm != "linf":
            observed = Quantizer.create("optimal", bits=bits, bucket_size=1024)
            observed.observe(x)
            errors[method] = observed.statistics.expected_variance(quantizer.exact_levels)
    assert min(errors, key=errors.get) == "optimal"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_state_gives_the_same_next_step(method):
    quantizer = Quantizer.create(method, bucket_size=64)
    for seed in range(3):
        quantizer.observe(gaussian(seed=seed))
    quantizer.update_levels()
    quantizer.observe(gaussian(seed=7))
    again = Quantizer.create(method, bucket_size=64)
    again.load_state_dict(quantizer.state_dict())
    for one in (quantizer, again):
        one.update_levels()
    assert torch.equal(quantizer.levels, again.levels)
    x = gaussian(seed=9)
    assert torch.equal(quantizer.encode(x, seed=1, offset=2).buffer, again.encode(x, seed=1, offset=2).buffer)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, {"rotation": "hadamard"}, {"tail": "full_precision"}])
def test_nan_and_infinity_surface_in_their_bucket_and_zeros_stay_zero(method, bad, options):
    quantizer = Quantizer.create(method, bucket_size=64, **options)
    x = gaussian(64 * 3 + 10)
    x[70] = bad
    x[128:192] = 0.0
    decoded = quantizer.decode(quantizer.encode(x, seed=1, offset=2))
    assert decoded[64:128].isnan().all()
    assert decoded[:64].isfinite().all()
    assert torch.equal(decoded[128:192], torch.zeros(64))
    x[200] = bad
    assert not quantizer.decode(quantizer.encode(x, seed=1, offset=2))[200].isfinite()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 5, 64, 150])
@pytest.mark.parametrize("tail", ["quantize", "full_precision"])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_options_of_every_method(method, n, tail, rotation):
    quantizer = Quantizer.create(method, bucket_size=64, tail=tail, rotation=rotation)
    x = gaussian(n)
    payload = quantizer.encode(x, seed=1, offset=2)
    decoded = quantizer.decode(payload)
    assert decoded.shape == (n,)
    if tail == "full_precision":
        whole = n - n % 64
        assert torch.equal(decoded[whole:], x[whole:])
        assert payload.tail == n - whole
    rows = torch.stack([payload.buffer, quantizer.encode(x, seed=9, offset=2).buffer])
    both = [quantizer.decode(payload), quantizer.decode(quantizer.encode(x, seed=9, offset=2))]
    torch.testing.assert_close(quantizer.decode_mean(rows, payload), sum(both) / 2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", ["qsgd_inf", "nuqsgd", "terngrad", "alq"])
def test_rotated_quantization_is_unbiased(method):
    quantizer = Quantizer.create(method, bucket_size=64, rotation="hadamard")
    x = gaussian(64)
    decoded = torch.stack([quantizer.decode(quantizer.encode(x, seed=s, offset=s)) for s in range(4000)]).double()
    bias, spread = decoded.mean(dim=0) - x.double(), decoded.std(dim=0)
    assert torch.all(bias.abs() <= 5 * spread / math.sqrt(4000))


def test_rotation_tames_a_spike():
    x = torch.zeros(1024)
    x[3], x[4:] = 1.0, 1e-4 * gaussian(1020) / 1e-3
    plain, rotated = (
        Quantizer.create("alq_inf", bucket_size=1024, update_at=[0], rotation=rotation)
        for rotation in ("none", "hadamard")
    )
    spread = {}
    for quantizer in (plain, rotated):
        payload = quantizer.encode(x, seed=1, offset=2)
        spread[quantizer.coding.rotate] = float(payload.norms[0])
    assert spread[True] < 0.1 * spread[False]


def test_clipping_of_terngrad_is_its_bias():
    x = gaussian(8192)
    clipped = Quantizer.create("terngrad", bucket_size=8192, clip=2.5)
    sigma = x.std(correction=0)
    expected = x.clamp(-2.5 * sigma, 2.5 * sigma)
    assert clipped.bias(x) == pytest.approx(float((expected - x).norm() / x.norm()), rel=1e-6)
    assert clipped.bias(x) > 0.01
    assert Quantizer.create("terngrad", bucket_size=8192).bias(x) == 0
    mean = torch.stack([clipped.decode(clipped.encode(x, seed=s, offset=0)) for s in range(200)]).double().mean(dim=0)
    assert float((mean - x).norm() / x.norm()) > 0.5 * clipped.bias(x)
    assert nmse(clipped, x) < nmse(Quantizer.create("terngrad", bucket_size=8192), x)
    assert torch.equal(clipped.decode(clipped.encode(torch.ones(64), seed=1, offset=0)), torch.ones(64))


def test_entropy_and_huffman_bits():
    quantizer = Quantizer.create("qsgd_inf", bucket_size=8192)
    payload = quantizer.encode(gaussian(64 * 8192), seed=1, offset=2)
    counts = torch.bincount(payload.codes, minlength=8).double()
    share = counts / counts.sum()
    assert payload.entropy_bits() == pytest.approx(float(-(share * share.log2()).sum()))
    assert payload.entropy_bits() == pytest.approx(2.00, abs=0.05)  # uniform levels of Gaussian buckets
    assert payload.entropy_bits() <= payload.huffman_bits() < payload.entropy_bits() + 1
    assert quantizer.encode(torch.empty(0), seed=1, offset=2).huffman_bits() == 0
    assert quantizer.encode(torch.zeros(64), seed=1, offset=2).entropy_bits() <= 1


@pytest.mark.parametrize(
    ("counts", "bits"), [([5], 1.0), ([1, 1], 1.0), ([2, 1, 1], 1.5), ([4, 2, 1, 1], 1.75), ([0, 0], 0.0), ([], 0.0)]
)
def test_huffman_code_lengths(counts, bits):
    assert huffman_bits(np.array(counts, dtype=np.int64)) == bits


@pytest.mark.parametrize("method", FITTED)
def test_what_is_kept_of_observations_gives_the_levels_of_all_of_them(method):
    quantizer = Quantizer.create(method, bucket_size=64)
    for seed in range(4):
        quantizer.observe(gaussian(seed=seed))
    assert len(quantizer.statistics.table()) <= (8192 if method.startswith("optimal") else 20)
    fit = quantizer.method.fit
    everything = [fit.observe(gaussian(seed=seed), quantizer.coding.norm, quantizer.options) for seed in range(4)]
    expected = fit.levels(
        fit.distribution(fit.statistics.merge(everything), quantizer.options),
        quantizer.exact_levels,
        quantizer.options,
    )
    quantizer.update_levels()
    np.testing.assert_allclose(quantizer.exact_levels, expected, rtol=1e-6, atol=1e-9)


def test_buckets_of_layers_and_of_the_network():
    first, second = gaussian(96, seed=1), gaussian(160, seed=2)
    by_layer = BucketStatistics.merge([bucket_statistics(part, 64, "l2") for part in (first, second)])
    network = bucket_statistics(torch.cat([first, second]), 64, "l2")
    np.testing.assert_array_equal(by_layer.counts, [64, 32, 64, 64, 32])
    np.testing.assert_array_equal(network.counts, [64] * 4)
    assert network.norms[0] == by_layer.norms[0]
    assert network.norms[1] == pytest.approx(float(torch.cat([first[64:], second[:32]]).norm()), rel=1e-6)


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("x", [torch.zeros(640), torch.ones(640), torch.full((640,), math.nan), torch.empty(0)])
def test_nothing_to_fit_keeps_the_levels(method, x):
    quantizer = Quantizer.create(method, bucket_size=64)
    before = quantizer.levels.clone()
    quantizer.observe(x)
    assert quantizer.update_levels() is False
    assert torch.equal(quantizer.levels, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "alqq"}, "did you mean 'alq'"),
        ({"method": "full_precision"}, "sends no codes"),
        ({"method": "alq", "bits": 9}, "bits"),
        ({"method": "qsgd", "components": 3}, "components"),
        ({"method": "alq", "bucket_size": 100, "rotation": "hadamard"}, "power of two"),
        ({"method": "terngrad", "clip": 0.0}, "clip"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Quantizer.create(**arguments)


def test_bucket_statistics():
    x = torch.tensor([3.0, 4.0, 0.0, 0.0, 1.0, 1.0, 7.0])
    found = bucket_statistics(x, 2, "l2")
    np.testing.assert_allclose(found.norms, [5, math.sqrt(2), 7])  # the zero bucket is left out
    np.testing.assert_allclose(found.means, [3.5 / 5, 1 / math.sqrt(2), 1], rtol=1e-7)
    np.testing.assert_allclose(found.sigmas, [math.sqrt(0.5) / 5, 0, 0], rtol=1e-7)
    np.testing.assert_array_equal(found.counts, [2, 2, 1])
    merged = BucketStatistics.merge([found, found])
    assert merged.pooled_mean == pytest.approx(found.pooled_mean)
    np.testing.assert_array_equal(BucketStatistics.from_table(merged.table()).table(), merged.table())
    assert len(bucket_statistics(x, 100, "linf").norms) == 1


def test_the_mixture_keeps_the_largest_norms():
    statistics = BucketStatistics(
        norms=np.array([1.0, 3.0, 2.0]), means=np.zeros(3), sigmas=np.array([0.1, 0.2, 0.3]), counts=np.full(3, 8.0)
    )
    mixture = statistics.mixture(2)
    np.testing.assert_array_equal(mixture.sigmas, [0.2, 0.3])
    np.testing.assert_allclose(mixture.weights, [0.6, 0.4])


def test_a_short_bucket_weighs_as_its_coordinates_do():
    statistics = BucketStatistics(
        norms=np.array([3.0, 2.0]), means=np.zeros(2), sigmas=np.full(2, 0.1), counts=np.array([2.0, 8.0])
    )
    np.testing.assert_allclose(statistics.mixture(2).weights, np.array([6, 16]) / 22)
    np.testing.assert_allclose(statistics.mixture(2, "norm_squared").weights, np.array([18, 32]) / 50)


@pytest.mark.parametrize("method", ["alq_inf", "alq_n", "amq_inf", "optimal", "optimal_inf"])
def test_levels_are_fitted_to_a_short_last_bucket_too(method):
    """One that has nearly all of the energy: the error is less than with levels fitted to the full buckets alone."""
    x = torch.cat([gaussian(4 * 1024), (1e3 * gaussian(300, seed=1)).pow(3)])
    errors = {}
    for name, seen in (("all", x), ("full", x[: 4 * 1024])):
        quantizer = Quantizer.create(method, bits=3, bucket_size=1024)
        quantizer.observe(seen)
        quantizer.update_levels()
        errors[name] = np.mean([nmse(quantizer, x, seed) for seed in range(40)])
    assert errors["all"] < 0.95 * errors["full"]


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("n", [100, 64 * 5 + 7])
def test_a_tail_that_is_not_quantized_is_not_fitted_to(method, n):
    """But it is where it is quantized."""
    x = torch.cat([gaussian(n - n % 64), 10 * gaussian(n % 64, seed=1)])
    whole = Quantizer.create(method, bucket_size=64, tail="full_precision")
    head, quantized = Quantizer.create(method, bucket_size=64), Quantizer.create(method, bucket_size=64)
    for quantizer, seen in ((whole, x), (head, x[: n - n % 64]), (quantized, x)):
        quantizer.observe(seen)
    np.testing.assert_array_equal(whole.statistics_table(), head.statistics_table())
    assert not np.array_equal(quantized.statistics_table(), head.statistics_table())


@pytest.mark.parametrize(("bits", "known"), [(2, 0.781), (3, 0.1159), (4, 0.0236)])
def test_known_error_of_optimal_inf_on_normal_buckets(bits, known):
    """Fitted to 256 normal buckets of 8192 and measured on 256 others: within 2% of the known answer, of which the
    standard error of the measurement, mostly by the buckets' largest magnitudes, is at most 0.6%."""
    quantizer = Quantizer.create("optimal_inf", bits=bits, bucket_size=8192)
    quantizer.observe(gaussian(256 * 8192, seed=1))
    quantizer.update_levels()
    x = gaussian(256 * 8192, seed=2)
    decoded = quantizer.decode(quantizer.encode(x, seed=1, offset=0))
    errors = (decoded - x).double().view(256, 8192).square().sum(dim=1) / x.double().view(256, 8192).square().sum(dim=1)
    assert float(errors.std()) / math.sqrt(256) < 0.006 * known
    assert float(errors.mean()) == pytest.approx(known, rel=0.02)


def test_optimal_inf_is_the_yardstick_of_all_linf_methods():
    x = gaussian(32 * 1024, seed=5).pow(3) * torch.logspace(-3, 0, 32).repeat_interleave(1024)
    yardstick = Quantizer.create("optimal_inf", bucket_size=1024)
    yardstick.observe(x)
    statistics = yardstick.statistics
    yardstick.update_levels()
    least = statistics.expected_variance(yardstick.exact_levels)
    for method in ADAPTIVE:
        quantizer = Quantizer.create(method, bucket_size=1024)
        if quantizer.coding.norm == "linf" and method != "optimal_inf":
            quantizer.observe(x)
            quantizer.update_levels()
            assert statistics.expected_variance(quantizer.exact_levels) > least


def test_update_schedule():
    schedule = UpdateSchedule((0, 100, 2000), 10_000)
    due = [iteration for iteration in range(30_000) if schedule.is_due(iteration)]
    assert due == [0, 100, 2000, 12_000, 22_000]
    assert [i for i in range(120) if schedule.wants_sample(i, 3)] == [0, 98, 99, 100]
    assert UpdateSchedule((5,), 0).next_due(6) is None
    assert UpdateSchedule((), 10).next_due(0) == 10
    assert UpdateSchedule().next_due(0) is None


@pytest.mark.parametrize("method", ["alq", "alq_n", "alqg", "alqg_n", "amq", "amq_n", "optimal"])
def test_a_short_bucket_is_encoded_as_if_it_were_full(method):
    """Under sqrt(d/c) times its l2 norm, once levels are fitted; one coordinate alone is exact as it is."""
    x = gaussian(3 * 64 + 16)
    quantizer = Quantizer.create(method, bits=3, bucket_size=64)
    norms = torch.stack([part.norm() for part in x.split(64)])
    torch.testing.assert_close(quantizer.encode(x, seed=1, offset=2).norms, norms, rtol=1e-6, atol=0)
    quantizer.observe(x)
    quantizer.update_levels()
    norms[-1] *= 2
    torch.testing.assert_close(quantizer.encode(x, seed=1, offset=2).norms, norms, rtol=1e-6, atol=0)
    one = x[:1]
    assert torch.equal(quantizer.decode(quantizer.encode(one, seed=1, offset=2)), one)


def test_levels_of_a_histogram_suit_a_short_bucket():
    """With as many coordinates as the full ones have, it is lost no more of than of them."""
    x = gaussian(8192 + 1024)
    quantizer = Quantizer.create("optimal", bits=3, bucket_size=8192)
    quantizer.observe(x)
    quantizer.update_levels()
    decoded = torch.stack([quantizer.decode(quantizer.encode(x, seed=seed, offset=0)) for seed in range(20)])
    lost = (decoded - x).square().mean(dim=0)
    assert lost[8192:].mean() < 1.3 * lost[:8192].mean()
