"""Formats of groups that share a scale: their numbers, and what they lose."""

import pytest
import torch

from lqray.quantization import Quantizer
from lqray.quantization.methods.mxfp4 import Mxfp4
from lqray.quantization.methods.mxfp8 import Mxfp8
from lqray.quantization.place import Place
from lqray.testing import compressor_suite

for _name in ("int8", "mxfp8", "mxfp4"):
    globals()[f"Test_{_name}_stochastic"] = compressor_suite(_name, round="stochastic")


def test_the_formats_have_the_numbers_of_the_specification():
    assert Mxfp4.numbers.tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    known = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    assert torch.equal(Mxfp8.numbers, known[known.isfinite()].unique())


@pytest.mark.parametrize(("method", "bits"), [("mxfp8", 8.25), ("mxfp4", 4.25), ("int8", 8 + 32 / 256)])
def test_bits(method, bits):
    assert Quantizer.create(method).encode(torch.randn(2**16), seed=1, offset=1).bits_per_coordinate == bits


@pytest.mark.parametrize("method", ["mxfp8", "mxfp4", "int8"])
def test_nearest_is_nearest_and_powers_of_two_change_nothing(method):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    quantizer = Quantizer.create(method)
    decoded = quantizer.decode(quantizer.encode(x, seed=1, offset=1))
    again = quantizer.decode(quantizer.encode(x * 2.0**-90, seed=1, offset=1)) * 2.0**90
    assert torch.equal(decoded, again)
    group = 256 if method == "int8" else 32
    numbers = quantizer.numbers / quantizer.numbers[-1]
    largest = x.view(-1, group).abs().amax(dim=1, keepdim=True)
    if method == "int8":
        candidates = (largest * numbers)[:, None, :]
        best = (candidates - x.view(-1, group)[:, :, None]).abs().amin(dim=2).view(-1)
        assert torch.allclose((decoded - x).abs(), best, atol=1e-6)
    else:
        top = float(quantizer.numbers[-1])
        scale = torch.exp2(torch.floor(torch.log2(largest)) - int(torch.log2(torch.tensor(top))))
        candidates = (scale * quantizer.numbers)[:, None, :]
        best = (candidates - x.view(-1, group)[:, :, None]).abs().amin(dim=2).view(-1)
        assert torch.allclose((decoded - x).abs(), best, atol=1e-6)


def test_stochastic_rounding_clips_nothing():
    """Group maxima between 6 and 8 times a power of two, which nearest rounding clips."""
    x = torch.full((32,), 7.5)
    nearest, unbiased = Quantizer.create("mxfp4"), Quantizer.create("mxfp4", round="stochastic")
    assert float(nearest.decode(nearest.encode(x, seed=1, offset=1)).max()) == 6.0
    drawn = [unbiased.decode(unbiased.encode(x, seed=seed, offset=1)) for seed in range(200)]
    assert float(torch.stack(drawn).mean()) == pytest.approx(7.5, rel=0.01)


@pytest.mark.parametrize("method", ["mxfp8", "mxfp4", "int8"])
def test_each_of_several_workers_that_round_together_is_unbiased(method):
    x = torch.randn(512, generator=torch.Generator().manual_seed(1))
    quantizer, place = Quantizer.create(method, round="stochastic"), Place(2, 4, correlated=True)
    plain = quantizer.encode(x, seed=0, offset=0)
    assert torch.equal(quantizer.encode_at(x, Place(2, 4), seed=0, offset=0).buffer, plain.buffer)
    drawn = []
    for offset in range(3000):
        payload = quantizer.encode_at(x, place, seed=1, offset=offset)
        assert torch.equal(payload.buffer[: payload.head_bytes], plain.buffer[: plain.head_bytes])
        drawn.append(quantizer.decode(payload).double())
    values = torch.stack(drawn)
    error, spread = values.mean(dim=0) - x, values.std(dim=0)
    # What lies a thousandth beside a number may never have been rounded to the next one.
    assert torch.all(error.abs() <= 4.5 * spread / len(drawn) ** 0.5 + 1e-3)
    nearest = Quantizer.create(method)
    assert torch.equal(nearest.encode_at(x, place, seed=1, offset=1).buffer, nearest.encode(x, seed=2, offset=1).buffer)


@pytest.mark.parametrize("method", ["mxfp8", "mxfp4", "int8"])
def test_subnormal_groups_are_rounded_to_what_they_are_near(method):
    """Largest magnitudes whose inverse float32 does not have."""
    x = torch.linspace(-1, 1, 256) * 2.0**-130
    quantizer = Quantizer.create(method)
    error = quantizer.decode(quantizer.encode(x, seed=1, offset=1)) - x
    assert float(error.abs().max()) <= 2.0**-127 * (1 if method == "mxfp4" else 2.0**-6)
