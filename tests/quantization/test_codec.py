"""Payloads of wrong bytes, tensors of odd memory, and the cast to 16 bits."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lqray.ops import reference
from lqray.quantization import Quantizer, codec
from tests.testing.methods import LEVELS

METHODS = LEVELS
HALVES = [torch.float16, torch.bfloat16]


def gaussian(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tail", ["quantize", "full_precision"])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
@pytest.mark.parametrize("n", [0, 5, 32, 37])
def test_a_payload_of_any_other_length_is_an_error(method, tail, rotation, n):
    quantizer = Quantizer.create(method, bucket_size=32, tail=tail, rotation=rotation)
    payload = quantizer.encode(gaussian(n), seed=1, offset=2)
    size = payload.nbytes
    for change in (-size, -32, -4, -1, 1, 4, 8, 400):
        wrong = torch.zeros(max(0, size + change), dtype=torch.uint8)
        if wrong.numel() == size:
            continue
        wrong[: min(size, len(wrong))] = payload.buffer[: len(wrong)]
        damaged = dataclasses.replace(payload, buffer=wrong)
        for use in (
            lambda: quantizer.decode(damaged),  # noqa: B023
            lambda: quantizer.decode_mean(wrong[None], payload),  # noqa: B023
            lambda: damaged.norms,  # noqa: B023
            lambda: damaged.codes,  # noqa: B023
            lambda: damaged.entropy_bits(),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=rf"{len(wrong)},?\); allowed: torch.uint8 of {size} bytes"):
                use()


def test_payloads_that_are_none():
    quantizer = Quantizer.create("qsgd", bucket_size=32)
    payload = quantizer.encode(gaussian(64), seed=1, offset=2)
    for buffer in (payload.buffer.to(torch.int8), payload.buffer.view(2, -1), payload.buffer.view(torch.float32)):
        with pytest.raises(ValueError, match="a payload is"):
            quantizer.decode(dataclasses.replace(payload, buffer=buffer))
    for change in (
        {"n": -1},
        {"n": 2**62},
        {"tail": 65},
        {"tail": -1},
        {"bits": 0},
        {"bits": 4},
        {"bucket_size": 0},
        {"bucket_size": 64},
        {"bucket_size": 2**63},
        {"rotation": 0},
    ):
        with pytest.raises(ValueError, match="allowed"):
            quantizer.decode(dataclasses.replace(payload, **change))
        with pytest.raises(ValueError, match="allowed"):
            quantizer.decode_mean(payload.buffer[None], dataclasses.replace(payload, **change))
    for rows in (payload.buffer, payload.buffer[None][:0], payload.buffer.to(torch.int64)[None]):
        with pytest.raises(ValueError, match="allowed"):
            quantizer.decode_mean(rows, payload)
    with pytest.raises(ValueError, match="bits"):
        Quantizer.create("qsgd", bits=4, bucket_size=32).decode(payload)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tail", ["quantize", "full_precision"])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_tensor_is_encoded_whatever_its_strides(method, tail, rotation, dtype):
    quantizer = Quantizer.create(method, bucket_size=32, tail=tail, rotation=rotation)
    base = gaussian(800).to(dtype)
    for view in (base[::3], base[1:70], base.view(20, 40).t(), base.view(20, 40)[:, 7], base[:1].expand(70), base[0]):
        there = quantizer.encode(view.clone(memory_format=torch.contiguous_format), seed=1, offset=2)
        assert torch.equal(quantizer.encode(view, seed=1, offset=2).buffer, there.buffer)
        assert torch.equal(quantizer.encode(view.requires_grad_(False), seed=1, offset=2).buffer, there.buffer)
        doubled = dataclasses.replace(there, buffer=there.buffer.repeat_interleave(2)[::2])
        assert torch.equal(quantizer.decode(doubled), quantizer.decode(there))
        rows = torch.stack([there.buffer, there.buffer], dim=1).t()
        assert torch.equal(quantizer.decode_mean(rows, there), quantizer.decode(there))


def test_a_tensor_of_a_graph_is_encoded_without_it():
    quantizer = Quantizer.create("qsgd", bucket_size=32, tail="full_precision")
    x = gaussian(37)
    expected = quantizer.encode(x, seed=1, offset=2).buffer
    assert torch.equal(quantizer.encode(x.clone().requires_grad_(), seed=1, offset=2).buffer, expected)


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
def test_other_dtypes_are_refused(rotation, dtype):
    with pytest.raises(ValueError, match="allowed: float32, float16 or bfloat16"):
        Quantizer.create("qsgd", bucket_size=32, rotation=rotation).encode(torch.ones(5, dtype=dtype), seed=1, offset=2)


def awkward(dtype: torch.dtype) -> torch.Tensor:
    """Numbers of `dtype`, their middles and other numbers between them: normal, subnormal, largest."""
    largest = torch.finfo(dtype).max
    exact = torch.tensor([0.0, 1.0, 1.5, 1e-3, 6e-8, 6e-5, 6.2e-5, 3e-41, 1e-38, 1.2e-38, 300.0, 0.9 * largest]).to(
        dtype
    )
    after = (exact.view(torch.int16) + 1).view(dtype).float()
    shares = torch.tensor([0.0, 0.25, 0.5, 1 / 3, 0.999])
    between = exact.float()[:, None] + shares * (after - exact.float())[:, None]
    return torch.cat([between.reshape(-1), torch.tensor([largest])])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_cast_takes_neighbours_and_is_unbiased(dtype, sign):
    """20,000 casts: each mean within 5.5 standard errors (error rate 4e-8 a number)."""
    values, repeats = sign * awkward(dtype), 20_000
    found = codec.cast(values.repeat(repeats), dtype, 7).view(repeats, -1).double()
    for value, column in zip(values.tolist(), found.unbind(dim=1), strict=True):
        near = torch.tensor(value, dtype=torch.float64).to(dtype)
        grain = float(column.max() - column.min())
        assert len(column.unique()) <= 2
        assert torch.all((column - value).abs() <= max(grain, abs(float(near.double()) - value)))
        assert abs(float(column.mean()) - value) <= 5.5 * float(column.std()) / math.sqrt(repeats) + 2.0**-24 * grain
    exact = values.to(dtype).float() == values
    assert torch.equal(found[:, exact], values[exact].double().expand(repeats, -1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_cast_keeps_what_is_not_finite_and_only_that(dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, largest, -0.0, 0.0])
    cast = codec.cast(values, dtype, 3)
    assert cast[0].isnan()
    assert cast[1:].tolist() == [math.inf, -math.inf, largest, -largest, largest, 0.0, 0.0]
    assert torch.equal(cast.signbit()[1:], values.signbit()[1:])
    assert codec.cast(values[:0], dtype, 3).dtype == dtype
    assert codec.cast(values, torch.float32, 3) is values


def test_the_cast_is_a_function_of_its_offset_alone_on_every_backend():
    """Written out with the reference's numbers: up where u is below the share of the way."""
    values = gaussian(1000)
    near = values.to(torch.bfloat16).float()
    low = torch.where(
        near.abs() > values.abs(),
        (near.to(torch.bfloat16).view(torch.int16) - 1).view(torch.bfloat16),
        near.to(torch.bfloat16),
    )
    high = (low.view(torch.int16) + 1).view(torch.bfloat16)
    share = (values - low.float()) / (high.float() - low.float())
    expected = torch.where(reference.uniforms(1000, 0x63617374, 9) < share, high, low)
    assert torch.equal(codec.cast(values, torch.bfloat16, 9), expected)
    assert not torch.equal(codec.cast(values, torch.bfloat16, 10), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_a_finite_bucket_of_float16_decodes_to_finite_numbers(method, rotation):
    """The largest is 60,000 and the l2 norm beyond float16."""
    quantizer = Quantizer.create(method, bucket_size=64, rotation=rotation)
    x = (gaussian(64) * 20_000).clamp(-60_000, 60_000).to(torch.float16)
    x[3] = 60_000.0
    assert float(x.double().norm()) > 65_504
    for seed in range(50):
        payload = quantizer.encode(x, seed=seed, offset=seed)
        assert payload.norms.isfinite().all()
        assert quantizer.decode(payload).isfinite().all()
        other = quantizer.encode(-x, seed=seed + 50, offset=seed)
        assert quantizer.decode_mean(torch.stack([payload.buffer, other.buffer]), payload).isfinite().all()
    x[5] = math.inf
    assert quantizer.decode(quantizer.encode(x, seed=1, offset=2)).isnan().any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tail", ["quantize", "full_precision"])
def test_what_is_decoded_to_16_bits_is_unbiased(dtype, tail):
    """8 bits, whose gaps are near the grain of bfloat16: 3,000 payloads of two workers, and their means."""
    quantizer = Quantizer.create("qsgd_inf", bits=8, bucket_size=64, tail=tail)
    x = gaussian(100).to(dtype)
    single, mean = [], []
    for step in range(3000):
        one, other = (quantizer.encode(x, seed=seed, offset=step) for seed in (1, 2))
        single.append(quantizer.decode(one).double())
        mean.append(quantizer.decode_mean(torch.stack([one.buffer, other.buffer]), one).double())
    for found in (torch.stack(single), torch.stack(mean)):
        spread = found.std(dim=0) / math.sqrt(3000)
        assert torch.all((found.mean(dim=0) - x.double()).abs() <= 5.5 * spread + 1e-12)


def test_the_mean_is_taken_in_float32_and_cast_once():
    quantizer = Quantizer.create("qsgd_inf", bits=8, bucket_size=64)
    x = gaussian(200).to(torch.bfloat16)
    payloads = [quantizer.encode(x, seed=seed, offset=5) for seed in range(3)]
    exact = [quantizer.decode(dataclasses.replace(payload, dtype=torch.float32)) for payload in payloads]
    expected = ((exact[0] + exact[1]) + exact[2]) * np.float32(1 / 3)
    rows = torch.stack([payload.buffer for payload in payloads])
    for like in payloads:  # whichever of them a rank holds
        assert torch.equal(quantizer.decode_mean(rows, like), codec.cast(expected, torch.bfloat16, 5))
