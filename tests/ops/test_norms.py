"""l2 norms to the bit: every backend against the reference, the reference against the definition and float64."""

import numpy as np
import pytest
import torch

from lqray import ops
from lqray.ops import reference
from tests.ops.test_backends import BACKENDS, DTYPES, data

TINY, LARGEST = 2.0**-149, float(np.finfo(np.float32).max)


def added(values: np.ndarray) -> np.float32:
    """The order of docs/wire-format.md, written out."""
    if len(values) > 1024:
        return added(np.array([added(values[at : at + 1024]) for at in range(0, len(values), 1024)]))
    lanes = np.zeros(32, dtype=np.float32)
    for at, value in enumerate(values):
        lanes[at % 32] += value
    for width in (16, 8, 4, 2, 1):
        lanes = lanes[:width] + lanes[width:]
    return lanes[0]


def defined(x: torch.Tensor) -> float:
    """The norm of one bucket as docs/wire-format.md defines it."""
    values = x.to(torch.float32).numpy()
    with np.errstate(all="ignore"):
        squares = added(values * values)
        if 2.0**-60 <= squares <= 2.0**120:
            return float(np.sqrt(squares))
        largest = np.abs(values).max()
        if largest == 0 or not np.isfinite(largest):
            return 0.0 if largest == 0 else float("nan")
        power = np.clip(np.frexp(largest)[1] - 1, -126, 126)
        scaled = values * np.float32(2.0**-power)
        norm = np.sqrt(added(scaled * scaled)) * np.float32(2.0**power)
        return float(norm) if np.isfinite(norm) else float("nan")


def bits_of(norms: torch.Tensor) -> list[int]:
    """NaN has one pattern, too: it travels."""
    return norms.cpu().view(torch.int32).tolist()


def one_huge(n: int) -> torch.Tensor:
    x = data(n, torch.float32, 3, 1e-12)
    x[n // 2] = 1e25
    return x


EXTREMES = {
    "zeros": torch.zeros(70),
    "negative zeros": torch.full((70,), -0.0),
    "the least subnormals": torch.full((70,), TINY),
    "one subnormal": torch.cat([torch.zeros(40), torch.tensor([3 * TINY])]),
    "subnormals": data(1500, torch.float32, 1, 1e-40),
    "squares that underflow": data(1500, torch.float32, 1, 1e-25),
    "squares that overflow": data(1500, torch.float32, 1, 1e25),
    "just too small a sum": torch.full((4,), 2.0**-31).nextafter(torch.zeros(4)),
    "just large enough a sum": torch.full((4,), 2.0**-31),
    "just small enough a sum": torch.full((4,), 2.0**59),
    "just too large a sum": torch.full((4,), 2.0**59).nextafter(torch.full((4,), 3e38)),
    "the largest number": torch.tensor([-LARGEST]),
    "a norm beyond float32": torch.tensor([LARGEST, LARGEST]),
    "one huge, many tiny": one_huge(3000),
    "one huge, many tiny subnormal beside it": torch.cat([torch.full((3000,), TINY), torch.tensor([1e-19])]),
    "a NaN": torch.cat([torch.ones(100), torch.tensor([torch.nan])]),
    "a negative NaN": torch.cat([torch.zeros(100), -torch.tensor([torch.nan])]),
    "an infinity": torch.cat([torch.zeros(33), torch.tensor([-torch.inf])]),
    "an infinity and a NaN": torch.tensor([torch.inf, torch.nan]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_the_reference_is_as_defined_at_extremes(name):
    x = EXTREMES[name]
    expected = torch.tensor([defined(x)])
    assert bits_of(reference.bucket_norms(x, x.numel(), "l2")) == bits_of(expected)
    assert bits_of(reference.bucket_norms(x, 2**30, "l2")) == bits_of(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 100, 1023, 1024, 1025, 1056, 2048, 8191, 50_000, 2**20 + 1500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_as_defined_at_any_length(n, dtype):
    x = data(n, dtype, n)
    assert bits_of(reference.bucket_norms(x, n, "l2")) == bits_of(torch.tensor([defined(x)]))


@pytest.mark.parametrize("bucket", [1, 3, 32, 40, 1024, 1100, 8192])
def test_a_short_last_bucket_is_as_one_of_its_own(bucket):
    x = data(2 * bucket + (bucket + 1) // 2, torch.float32, bucket)
    expected = torch.tensor([defined(part) for part in x.split(bucket)])
    assert bits_of(reference.bucket_norms(x, bucket, "l2")) == bits_of(expected)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-38, 1e18, 1e30])
@pytest.mark.parametrize("n", [1, 50, 1024, 8192, 2**20 + 77])
def test_norms_are_within_a_few_last_bits_of_float64(scale, n):
    for x in (data(n, torch.float32, n, scale), torch.full((n,), 0.7 * scale), data(n, torch.float32, n).exp() * scale):
        found = float(reference.bucket_norms(x, n, "l2"))
        assert found == pytest.approx(float(x.double().norm()), rel=4 * 2**-23, abs=0)


def test_a_bucket_of_one_has_its_magnitude_as_norm():
    x = torch.cat([data(5000, torch.float32, 0, scale) for scale in (1e-42, 1e-30, 1.0, 1e30)])
    assert bits_of(reference.bucket_norms(x, 1, "l2")) == bits_of(x.abs())


@pytest.mark.parametrize("device", BACKENDS)
def test_extremes(device):
    for name, x in EXTREMES.items():
        for bucket in (1, 7, 32, 64, x.numel(), 2**30):
            expected = bits_of(reference.bucket_norms(x, bucket, "l2"))
            assert bits_of(ops.bucket_norms(x.to(device), bucket, "l2")) == expected, (name, bucket)
            levels = torch.linspace(-1, 1, 8)
            fused = ops.encode_fused(x.to(device), levels.to(device), 3, bucket, "l2", 1, 2).cpu()
            assert torch.equal(fused, reference.encode_fused(x, levels, 3, bucket, "l2", 1, 2)), (name, bucket)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e-9, 1.0, 1e17, 1e19, 1e30, 1e38])
def test_any_length_at_any_scale(device, scale):
    """Buckets of which some need their scale, and some do not, among them."""
    for at, bucket in enumerate((1, 5, 32, 100, 1024, 1025, 2048, 5000, 8192, 16384, 20_000)):
        x = data(min(40 * bucket, 50_001), torch.float32, bucket, scale).to(DTYPES[at % 3])
        expected = bits_of(reference.bucket_norms(x, bucket, "l2"))
        assert bits_of(ops.bucket_norms(x.to(device), bucket, "l2")) == expected, bucket


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bucket", [2**20 - 1, 2**20, 2**20 + 1, 2**21 + 1025, 2**30])
def test_long_buckets(device, dtype, bucket):
    x = data(2_500_000, dtype, 5)
    for scaled in (x, x * 1e-30, x * 1e25):
        expected = bits_of(reference.bucket_norms(scaled, bucket, "l2"))
        assert bits_of(ops.bucket_norms(scaled.to(device), bucket, "l2")) == expected


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bucket", [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])
def test_payloads_of_buckets_some_of_which_need_their_scale(device, bucket):
    """Kernels that hold whole buckets at once: neighbours of every scale, and chunks of 1,024 of one bucket, too."""
    scales = [1.0, 0.0, 1e-30, 1.0, 1e-42, 4.4e17, 1e19, 1e30, 3e38, float("nan"), 1e-9, 1e-30]
    rows = torch.stack([data(bucket, torch.float32, at) * scale for at, scale in enumerate(scales)])
    rows[0, : bucket // 2] = 0.0
    rows[2, -200:] *= 1e10
    x = torch.cat([rows.reshape(-1).repeat(1 + 20_000 // rows.numel()), data(700, torch.float32, 1, 1e-30)])
    levels = torch.linspace(-1, 1, 7)
    for bits, norm in ((3, "l2"), (3, "linf"), (5, "l2")):
        expected = reference.encode_fused(x, levels, bits, bucket, norm, 1, 2)
        assert torch.equal(ops.encode_fused(x.to(device), levels.to(device), bits, bucket, norm, 1, 2).cpu(), expected)
