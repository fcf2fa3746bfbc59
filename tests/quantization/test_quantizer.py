"""The contract of every method that sends codes."""

import math

import numpy as np
import pytest
import torch

from lqray.experiment import names
from lqray.quantization import BucketStatistics, Quantizer
from lqray.quantization.methods import load_method
from lqray.quantization.schedule import UpdateSchedule
from lqray.quantization.statistics import bucket_statistics

METHODS = [name for name in names.methods() if load_method(name) is not None]
ADAPTIVE = [name for name in METHODS if load_method(name).fit is not None]


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
    assert int(payload.codes.max()) < len(quantizer.levels) <= 2**bits
    assert payload.nbytes == 4 * math.ceil(1000 / 32) + 4 * bits * math.ceil(1000 / 32)
    if quantizer.method.norm == "linf":
        assert torch.equal(
            quantizer.decode(quantizer.encode(quantizer.levels, seed=1, offset=2))[-32:], quantizer.levels[-32:]
        )


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


@pytest.mark.parametrize("method", ADAPTIVE)
def test_updated_levels_halve_the_error_and_match_the_expected_variance(method):
    quantizer = Quantizer.create(method, bucket_size=8192, components=64)
    x = gaussian(64 * 8192)
    before = nmse(quantizer, x)
    quantizer.observe(x)
    mixture = quantizer.statistics.mixture(64)
    assert quantizer.update_levels()
    assert nmse(quantizer, x) < before / 2
    # Rounding variance given the data: a single rounding's NMSE hangs on one or two rare jumps to a level of 1.
    r = x.double().view(-1, 8192)
    r = (r / r.norm(dim=1, keepdim=True)).reshape(-1).numpy()
    levels = quantizer.exact_levels
    j = np.searchsorted(levels, r, side="right") - 1
    variance = np.mean((levels[j + 1] - r) * (r - levels[j]))
    assert variance == pytest.approx(mixture.expected_variance(levels), rel=0.02)


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


@pytest.mark.parametrize("method", ADAPTIVE)
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
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Quantizer.create(**arguments)


def test_bucket_statistics():
    x = torch.tensor([3.0, 4.0, 0.0, 0.0, 1.0, 1.0, 7.0])
    found = bucket_statistics(x, 2, "l2")
    np.testing.assert_allclose(found.norms, [5, math.sqrt(2)])  # the zero bucket and the short one are left out
    np.testing.assert_allclose(found.means, [3.5 / 5, 1 / math.sqrt(2)], rtol=1e-7)
    np.testing.assert_allclose(found.sigmas, [math.sqrt(0.5) / 5, 0], rtol=1e-7)
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


def test_update_schedule():
    schedule = UpdateSchedule((0, 100, 2000), 10_000)
    due = [iteration for iteration in range(30_000) if schedule.is_due(iteration)]
    assert due == [0, 100, 2000, 12_000, 22_000]
    assert [i for i in range(120) if schedule.wants_sample(i, 3)] == [0, 98, 99, 100]
    assert UpdateSchedule((5,), 0).next_due(6) is None
    assert UpdateSchedule((), 10).next_due(0) == 10
    assert UpdateSchedule().next_due(0) is None
