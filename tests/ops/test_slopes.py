"""Levels with slopes, and correlated rounding: what is exactly true of their arithmetic, and that every backend has it.

The bodies run once more for every instruction set, and under sanitizers.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.ops import reference, slopes
from tests.ops.test_backends import BUCKETS, DTYPES, NATIVE_CPU, SIZES, data, same, some_levels
from tests.ops.test_fuzz import BUCKETS as ANY_BUCKET
from tests.ops.test_fuzz import EXAMPLES, WORDS, random_bytes
from tests.ops.test_fuzz import SIZES as ANY_SIZE

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
BACKENDS = [pytest.param("cpu", marks=NATIVE_CPU, id="native-cpu"), pytest.param("cuda", marks=CUDA, id="cuda")]
GOLDEN = [-1081145018, -1081385788, -1085888004, 1066461367, 1061181662]


def some_slopes(levels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Irregular ones that are allowed: of a cumulative sum whose steps are below two gaps."""
    steps = torch.rand(levels.numel() - 1, generator=torch.Generator().manual_seed(seed)) * 3.9 - 1.95
    found = torch.cat([torch.zeros(1), (steps * (levels[1:] - levels[:-1])).cumsum(0)])
    return found - found.min()


def check_all(device, x, levels, bits, bucket, seed, offset):
    n, tilted = x.numel(), some_slopes(levels, seed % 2**31)
    there = [each.to(device) for each in (x, levels, tilted)]
    rows = []
    for phase in (0, 2**31, 0xDEADBEEF):
        expected = slopes.REFERENCES["slopes_encode"](x, levels, tilted, bits, bucket, seed, offset, phase)
        assert same(ops.slopes_encode(*there, bits, bucket, seed, offset, phase), expected)
        rows.append(expected)
    phases = torch.tensor([0, -(2**31), 0xDEADBEEF - 2**32], dtype=torch.int32)
    for count, scale in ((1, 1.0), (3, 1 / 3)):
        payloads, some = torch.stack(rows[:count]), phases[:count]
        decode = slopes.REFERENCES["slopes_decode_sum"]
        expected = decode(payloads, some, levels, tilted, n, bits, bucket, seed, offset, scale)
        longer = torch.cat([payloads, torch.zeros(count, 8, dtype=torch.uint8)], dim=1).to(device)
        given = longer[:, : payloads.shape[1]], some.to(device), *there[1:]
        assert same(ops.slopes_decode_sum(*given, n, bits, bucket, seed, offset, scale), expected)
    for norm, (worker, workers) in zip(("l2", "linf", "linf"), ((1, 2), (0, 3), (6, 7)), strict=True):
        expected = slopes.REFERENCES["correlated_encode"](
            x, levels, bits, bucket, norm, seed, offset, 5, worker, workers
        )
        assert same(ops.correlated_encode(*there[:2], bits, bucket, norm, seed, offset, 5, worker, workers), expected)
    given = 1.5 * reference.bucket_norms(x, bucket, "linf")
    numbers = bits, bucket, "linf", seed, offset, 5, 1, 3
    expected = slopes.REFERENCES["correlated_encode"](x, levels, *numbers, given)
    assert same(ops.correlated_encode(*there[:2], *numbers, given.to(device)), expected)
    assert same(expected[: 4 * given.numel()], given.view(torch.uint8))


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("n", SIZES)
def test_awkward_sizes(device, n):
    for k, bucket in enumerate(BUCKETS):
        bits = 1 + (k + n) % 8
        check_all(device, data(n, DTYPES[k % 3], k), some_levels(bits), bits, bucket, seed=k, offset=n)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("bucket", [2048, 4099])
def test_long_tensors(device, bits, bucket):
    check_all(device, data(9001, torch.float32, bits), some_levels(bits, bits), bits, bucket, 2**64 - 1, 2**63 + bits)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e38])
def test_any_scale(device, scale):
    check_all(device, data(1000, torch.float32, scale=scale), some_levels(3), 3, 64, 1, 2)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity(device, bad):
    x = data(1000, torch.float32)
    x[[5, 300, 999]] = bad
    check_all(device, x, some_levels(4), 4, 64, 1, 2)


@settings(max_examples=EXAMPLES)
@given(ANY_SIZE, ANY_BUCKET, st.integers(1, 8), WORDS, WORDS, st.integers(0, 2**32 - 1), st.data())
def test_fuzz_any_bytes_are_encoded_and_decoded_as_the_reference_does(n, bucket, bits, seed, offset, phase, drawn):
    dtype = drawn.draw(st.sampled_from(DTYPES))
    width = torch.empty(0, dtype=dtype).element_size()
    x = random_bytes(n * width, seed % 2**31).view(dtype) if drawn.draw(st.booleans()) else torch.randn(n).to(dtype)
    levels = torch.linspace(-1, 1, drawn.draw(st.integers(2, 2**bits)))
    tilted = some_slopes(levels, seed % 2**31)
    expected = slopes.REFERENCES["slopes_encode"](x, levels, tilted, bits, bucket, seed, offset, phase)
    assert torch.equal(ops.slopes_encode(x, levels, tilted, bits, bucket, seed, offset, phase), expected)
    workers = drawn.draw(st.integers(2, slopes.MOST_WORKERS))
    numbers = seed, offset, phase, phase % workers, workers
    expected = slopes.REFERENCES["correlated_encode"](x, levels, bits, bucket, "l2", *numbers)
    assert torch.equal(ops.correlated_encode(x, levels, bits, bucket, "l2", *numbers), expected)
    rows = torch.stack([random_bytes(expected.numel(), seed % 2**31), random_bytes(expected.numel(), offset % 2**31)])
    phases = random_bytes(8, phase % 2**31).view(torch.int32)
    given = rows, phases, levels, tilted, n, bits, bucket, seed, offset, 0.5
    assert same(ops.slopes_decode_sum(*given), slopes.REFERENCES["slopes_decode_sum"](*given))


@pytest.mark.skipif(ops.loaded.instruction_set == "portable", reason="there is no other instruction set")
@pytest.mark.parametrize("isa", [pytest.param("portable", marks=pytest.mark.slow), "avx2"])
def test_kernels_that_are_held_back_give_the_same_bytes(isa):
    chosen = "(awkward or long or nan) and native-cpu"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env=os.environ | {"LQRAY_CPU_ISA": isa}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_golden_bytes():
    """As docs/wire-format.md has them: norms, two planes of each group."""
    levels, tilted = torch.tensor([-1.0, -0.25, 0.25, 1.0]), torch.tensor([0.5, 0.25, 0.25, 0.5])
    x, phase = torch.linspace(-1, 1, 40), torch.tensor([0x40000001], dtype=torch.int32)
    payload = ops.slopes_encode(x, levels, tilted, 2, 40, 5, 6, 0x40000001)
    assert bytes(payload.numpy()).hex() == "0000803f685c3b800080c4ffff000000ff000000"
    decoded = ops.slopes_decode_sum(payload[None], phase, levels, tilted, 40, 2, 40, 5, 6, 1.0)
    assert decoded[[0, 1, 2, 38, 39]].view(torch.int32).tolist() == GOLDEN
    payload = ops.correlated_encode(x, levels, 2, 40, "linf", 5, 6, 7, 2, 3)
    assert bytes(payload.numpy()).hex() == "0000803f10f73db80000c2ffed000000ff000000"


def rounded(r, levels, tilted, repeats, seed=0):
    """What r (m,) decode to, (repeats, m), as single coordinates beside a largest one."""
    m = r.numel()
    x = torch.cat([r.repeat(repeats), torch.ones(1)])
    n, bits = x.numel(), (levels.numel() - 1).bit_length()
    payload = ops.slopes_encode(x, levels, tilted, bits, n, seed, 1, 12345)
    phases = torch.tensor([12345], dtype=torch.int32)
    return ops.slopes_decode_sum(payload[None], phases, levels, tilted, n, bits, n, seed, 1, 1.0)[:-1].view(-1, m)


def test_dither_loses_a_twelfth_of_the_gap_squared_whatever_the_signal_and_is_unbiased():
    levels = torch.linspace(-1, 1, 8)
    gap = 2 / 7
    r = torch.tensor([-0.99, -0.5, -0.143, 0.0, 0.001, 0.14, 0.29, 0.7])
    error = (rounded(r, levels, torch.full((8,), gap), 1_000_000) - r).double()
    # The mean of 10^6 squares of numbers uniform in a gap has a standard error of .0009 of itself.
    np.testing.assert_allclose(error.square().mean(0), gap**2 / 12, rtol=0.005)
    assert torch.all(error.mean(0).abs() <= 4.5 * error.std(0) / 1000 + 1e-7)
    assert float(error.abs().max()) <= gap / 2 * (1 + 1e-4)


@pytest.mark.parametrize("steep", [0.0, 0.5, 1.0])
def test_slopes_are_exactly_unbiased(steep):
    """10^6 roundings of each of eight numbers, by z-test; and their variance is that of the closed form."""
    levels = torch.tensor([-1.0, -0.4648, -0.2459, -0.0782, 0.0782, 0.2459, 0.4648, 1.0])
    tilted = steep * torch.tensor([0.906, 0.268, 0.183, 0.158, 0.158, 0.183, 0.268, 0.906])
    r = torch.tensor([-0.9, -0.4648, -0.3, -0.01, 0.003, 0.2, 0.77, 0.999])
    decoded = rounded(r, levels, tilted, 1_000_000, seed=3).double()
    error = decoded.mean(0) - r.double()
    spread = decoded.std(0)
    assert torch.all(error.abs() <= 4.5 * spread / 1000 + 1e-7), (error / spread * 1000).tolist()


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_correlated_rounding_has_the_variance_of_theory(workers):
    """Of the mean of equal numbers: g^2 phi (1 - phi) / W^2, phi = frac(W f), and no bias, by z-test of 500,000."""
    levels = torch.tensor([-1.0, 1.0])
    for f in (0.1, 0.25, 0.61803):
        x = torch.full((500_001,), 2 * f - 1)
        x[-1] = 1
        n = x.numel()
        payloads = [ops.correlated_encode(x, levels, 1, n, "linf", 100 + w, 2, 77, w, workers) for w in range(workers)]
        ups = [ops.unpack(payload[4:], n, 1)[:-1].double() for payload in payloads]
        for up in ups:
            assert abs(float(up.mean()) - f) < 4.5 * (f * (1 - f)) ** 0.5 / 500_000**0.5
        mean = torch.stack(ups).mean(0)
        phi = workers * f % 1
        expected = phi * (1 - phi) / workers**2
        assert float(mean.var(correction=0)) == pytest.approx(expected, rel=0.02, abs=1e-6)


def test_correlated_rounding_of_uniform_positions_leaves_a_fourth():
    """W = 4: g^2/96 against g^2/24."""
    n, gap = 1_000_000, 2.0
    x = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[0] = 1
    levels = torch.tensor([-1.0, 1.0])

    def variance(payloads) -> float:
        codes = torch.stack([ops.unpack(payload[4:], n, 1).double() for payload in payloads])
        return float((gap * codes.mean(0) - 1 - x.double()).square().mean())

    together = variance([ops.correlated_encode(x, levels, 1, n, "linf", 9 + w, 2, 77, w, 4) for w in range(4)])
    alone = variance([ops.encode_fused(x, levels, 1, n, "linf", 9 + w, 2) for w in range(4)])
    assert together == pytest.approx(gap**2 / 96, rel=0.02)
    assert alone == pytest.approx(gap**2 / 24, rel=0.02)


def test_what_is_not_allowed_is_an_error():
    x, levels, flat = torch.randn(64), torch.linspace(-1, 1, 4), torch.zeros(4)
    encoded = ops.slopes_encode(x, levels, flat, 2, 64, 1, 2, 0)
    phases = torch.zeros(1, dtype=torch.int32)
    for call, match in (
        (lambda: ops.slopes_encode(x, levels, torch.zeros(3), 2, 64, 1, 2, 0), "slopes is"),
        (lambda: ops.slopes_encode(x, levels, torch.tensor([0.0, 2, 0, 0]), 2, 64, 1, 2, 0), "twice the gap"),
        (lambda: ops.slopes_encode(x, levels, flat - 1, 2, 64, 1, 2, 0), "at least 0"),
        (lambda: ops.slopes_encode(x, levels, flat, 2, 64, 1, 2, 2**32), "phase is"),
        (lambda: ops.correlated_encode(x, levels, 2, 64, "l2", 1, 2, 3, 4, 4), "worker 4 of 4"),
        (lambda: ops.correlated_encode(x, levels, 2, 64, "l2", 1, 2, 3, 0, 1), "worker 0 of 1"),
        (lambda: ops.correlated_encode(x, levels, 2, 64, "l2", 1, 2, 3, 0, 2, torch.ones(2)), "norms"),
        (lambda: ops.slopes_decode_sum(encoded[None], phases.repeat(2), levels, flat, 64, 2, 64, 1, 2, 1.0), "phases"),
        (lambda: ops.slopes_decode_sum(encoded[None, 1:], phases, levels, flat, 64, 2, 64, 1, 2, 1.0), "payload"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    if ops.native.backend("slopes_encode", "cpu") == "native":
        with pytest.raises(RuntimeError, match="slopes must be"):
            torch.ops.lqray.slopes_encode(x, levels, flat - 1, 2, 64, 1, 2, 0)
        with pytest.raises(RuntimeError, match="payload"):
            torch.ops.lqray.slopes_decode_sum(encoded[None, 1:], phases, levels, flat, 64, 2, 64, 1, 2, 1.0)


def test_shapes_are_known_without_numbers():
    meta = torch.empty(100, device="meta"), torch.empty(4, device="meta"), torch.empty(4, device="meta")
    found = torch.ops.lqray.slopes_encode(*meta, 2, 64, 1, 2, 3)
    assert found.shape == torch.ops.lqray.correlated_encode(*meta[:2], 2, 64, "l2", 1, 2, 3, 0, 2).shape == (40,)
    assert reference.words(3, 1, 2).dtype == torch.int64
