"""Random and corrupted input to the operators; run once more by test_sanitized.py, under sanitizers."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.ops import reference

EXAMPLES = int(os.environ.get("LQRAY_FUZZ_EXAMPLES", "40"))
SIZES = st.one_of(st.integers(0, 70), st.integers(200, 2000))
BUCKETS = st.one_of(st.integers(1, 70), st.sampled_from([256, 512, 1000, 2048, 1 << 20]))
WORDS = st.integers(0, 2**64 - 1)


def levels_of(count: int) -> torch.Tensor:
    return torch.linspace(-1, 1, count).sign() * torch.linspace(-1, 1, count).square()


def random_bytes(size: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


@settings(max_examples=EXAMPLES)
@given(SIZES, BUCKETS, st.integers(1, 8), WORDS, WORDS, st.data())
def test_any_bytes_are_encoded_as_the_reference_does(n, bucket, bits, seed, offset, data):
    """Any float32 patterns, NaN and subnormal ones among them; any number of levels."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    width = torch.empty(0, dtype=dtype).element_size()
    x = random_bytes(n * width, seed % 2**31).view(dtype) if data.draw(st.booleans()) else torch.randn(n).to(dtype)
    levels = levels_of(data.draw(st.integers(2, 2**bits)))
    norm = data.draw(st.sampled_from(["l2", "linf"]))
    norms = reference.bucket_norms(x, bucket, norm)
    if data.draw(st.booleans()):
        norms = random_bytes(norms.numel() * 4, offset % 2**31).view(torch.float32)
    expected = reference.encode(x, norms, levels, bits, bucket, seed, offset)
    assert torch.equal(ops.encode(x, norms, levels, bits, bucket, seed, offset), expected)
    payload = ops.encode_fused(x, levels, bits, bucket, norm, seed, offset)
    assert payload.numel() == ops.norm_bytes(n, bucket) + ops.code_bytes(n, bits)
    ops.bucket_statistics(x, bucket, norm)


@settings(max_examples=EXAMPLES)
@given(SIZES, BUCKETS, st.integers(1, 8), st.integers(0, 2**31), st.data())
def test_any_bytes_decode_within_bounds(n, bucket, bits, seed, data):
    """Every code a payload can hold is some level's, whatever bytes arrive."""
    levels = levels_of(data.draw(st.integers(2, 2**bits)))
    size = ops.norm_bytes(n, bucket) + ops.code_bytes(n, bits)
    payload = random_bytes(size, seed)
    expected = reference.decode(payload, levels, n, bits, bucket)
    assert same(ops.decode(payload, levels, n, bits, bucket), expected)
    rows = torch.stack([payload, random_bytes(size, seed + 1)])
    expected = reference.decode_sum(rows, levels, n, bits, bucket, 0.5)
    assert same(ops.decode_sum(rows, levels, n, bits, bucket, 0.5), expected)


@settings(max_examples=EXAMPLES)
@given(SIZES, BUCKETS, st.integers(1, 8), st.integers(-40, 40).filter(bool))
def test_a_payload_of_wrong_length_is_an_error(n, bucket, bits, wrong):
    size = max(0, ops.norm_bytes(n, bucket) + ops.code_bytes(n, bits) + wrong)
    if size == ops.norm_bytes(n, bucket) + ops.code_bytes(n, bits):
        return
    payload = torch.zeros(size, dtype=torch.uint8)
    for call in (ops.decode, torch.ops.lqray.decode):
        if call is torch.ops.lqray.decode and ops.native.backend("decode", "cpu") != "native":
            continue
        with pytest.raises((ValueError, RuntimeError), match="payload"):
            call(payload, levels_of(2), n, bits, bucket)
