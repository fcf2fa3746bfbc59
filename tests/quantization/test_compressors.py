"""The contract of every compressor, and the known answers of those that are no level quantizers."""

import math

import pytest
import torch

from lqray.quantization import Compressor, Quantizer
from lqray.quantization.integers import integer_bytes, pack_bits, pack_integers, unpack_bits, unpack_integers
from lqray.quantization.sparse import index_bytes, read_indices, write_indices
from lqray.testing import compressor_suite
from tests.testing.methods import COMPRESSORS, SPARSE

_OPTIONS = {name: {"density": 0.1} for name in SPARSE}
for _name in COMPRESSORS:
    globals()[f"Test_{_name}"] = compressor_suite(_name, **_OPTIONS.get(_name, {}))
for _inner in ("rounding", "dither", "slopes"):
    globals()[f"Test_allocated_{_inner}"] = compressor_suite("allocated", inner=_inner)
    globals()[f"Test_allocated_{_inner}_of_one_bit"] = compressor_suite("allocated", inner=_inner, bits=1)
Test_allocated_long_blocks = compressor_suite("allocated", inner="dither", bits=3, bucket_size=512)
Test_small_buckets = compressor_suite("qsgd", bits=2, bucket_size=48)
Test_rotated = compressor_suite("qsgd_inf", bucket_size=64, rotation="hadamard")
Test_tail = compressor_suite("alq_inf", bucket_size=1000, tail="full_precision")
Test_majority = compressor_suite("signsgd", bucket_size=48, vote="majority")
Test_sixteen_bit_values = compressor_suite("topk", density=0.3, values="bfloat16")
Test_all = compressor_suite("topk", density=1.0)


def gradient(n=10_000, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * torch.linspace(-3, 1, n).exp()


def energy(x) -> float:
    return float(x.double().square().sum())


def test_the_suite_finds_what_is_wrong():
    """Each claim broken once."""

    class Wrong(Compressor):
        unbiased = deterministic = True

        def encode(self, tensor, *, seed, offset):
            return Quantizer.create("qsgd_inf").encode(0.5 * tensor, seed=seed, offset=offset)

        def decode(self, payload):
            return Quantizer.create("qsgd_inf").decode(payload)

    suite = compressor_suite("wrong")()
    suite.made = lambda: Wrong({})
    with pytest.raises(AssertionError, match="off by up to"):
        suite.test_unbiased_means_unbiased()
    with pytest.raises(AssertionError):
        suite.test_equal_seeds_and_offsets_give_equal_bytes()


def test_topk_with_all_is_exact_and_sends_no_index():
    x, compressor = gradient(), Quantizer.create("topk", density=1.0)
    payload = compressor.encode(x, seed=0, offset=0)
    assert payload.nbytes == 4 * x.numel()
    assert torch.equal(compressor.decode(payload), x)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_topk_keeps_the_largest_and_loses_the_rest(density):
    x, compressor = gradient(), Quantizer.create("topk", density=density)
    payload = compressor.encode(x, seed=0, offset=0)
    k = round(density * x.numel())
    assert payload.nbytes == 4 * k + min(1250, k + 6 * -(-k // 8))  # a bit each, or 14 bits for each that is sent
    lost = energy(compressor.decode(payload) - x)
    smallest = x.abs().sort().values[: x.numel() - k]
    assert lost == pytest.approx(energy(smallest), rel=1e-9)
    assert lost <= (1 - density) * energy(x)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_random_k_has_the_variance_of_theory(density):
    """E|Q(x) - x|^2 = (n/k - 1) |x|^2, of 4,000 draws; all workers draw alike."""
    x, compressor = gradient(1000), Quantizer.create("random_k", density=density)
    assert torch.equal(compressor.encode(x, seed=1, offset=5).buffer, compressor.encode(x, seed=2, offset=5).buffer)
    errors = torch.tensor(
        [energy(compressor.decode(compressor.encode(x, seed=0, offset=draw)) - x) for draw in range(4000)]
    )
    expected = (1 / density - 1) * energy(x)
    assert abs(float(errors.mean()) - expected) < 5 * float(errors.std()) / math.sqrt(4000) + 1e-6 * expected
    assert compressor.encode(x, seed=0, offset=0).nbytes == 4 * round(1000 * density)


def test_random_k_draws_every_coordinate_alike():
    compressor = Quantizer.create("random_k", density=0.3)
    x = torch.ones(10)
    drawn = sum((compressor.decode(compressor.encode(x, seed=0, offset=o)) > 0).double() for o in range(20_000))
    # Strata of 3, 3 and 4: each has one.
    expected = 20_000 * torch.tensor([1 / 3] * 6 + [1 / 4] * 4, dtype=torch.float64)
    assert torch.all((drawn - expected).abs() < 5 * expected.sqrt())


def test_sign_loses_what_theory_says():
    x, compressor = gradient(4096), Quantizer.create("signsgd", bucket_size=4096)
    payload = compressor.encode(x, seed=0, offset=0)
    assert payload.nbytes == 4 + 4096 // 8
    lost = energy(compressor.decode(payload) - x) / energy(x)
    assert lost == pytest.approx(1 - float(x.double().abs().sum()) ** 2 / (4096 * energy(x)), rel=1e-5)


def test_a_majority_has_the_mean_of_the_magnitudes():
    compressor = Quantizer.create("signsgd", bucket_size=4, vote="majority")
    rows = [[1.0, 1, -1, 3], [2.0, -2, -2, 2], [-3.0, -3, 3, 3]]
    payloads = [compressor.encode(torch.tensor(row), seed=0, offset=0) for row in rows]
    mean = compressor.decode_mean(torch.stack([payload.buffer for payload in payloads]), payloads[0])
    size = (6 / 4 + 8 / 4 + 12 / 4) / 3
    torch.testing.assert_close(mean, size * torch.tensor([1.0, -1, -1, 1]))


@pytest.mark.parametrize(("method", "bits"), [("terngrad", 2), ("qsgd", 3)])
def test_codes_have_as_many_bits_as_the_levels_need(method, bits):
    assert Quantizer.create(method).coding.bits == bits


@pytest.mark.parametrize("width", [1, 7, 8, 13, 16, 25, 48])
@pytest.mark.parametrize("k", [0, 1, 8, 9, 100])
def test_integers_come_back(width, k):
    values = torch.randint(0, 2**width, (k,), generator=torch.Generator().manual_seed(k))
    packed = pack_integers(values, width)
    assert packed.numel() == integer_bytes(k, width)
    assert torch.equal(unpack_integers(packed, k, width), values)
    bits = values % 2 == 1
    assert torch.equal(unpack_bits(pack_bits(bits), k), bits)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (1000, 1), (1000, 50), (1000, 500), (1000, 999), (1000, 1000)])
def test_indices_come_back_in_the_fewest_bytes(n, k):
    indices = torch.randperm(n, generator=torch.Generator().manual_seed(k))[:k].sort().values
    packed = write_indices(indices, n)
    assert packed.numel() == index_bytes(n, k) <= min(-(-n // 8), 3 * k)
    assert torch.equal(read_indices(packed, n, k), indices)
    assert read_indices(torch.full_like(packed, 255), n, k).max() < n
