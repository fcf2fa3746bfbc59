"""Codes of rotated blocks, norms in a byte and widths that follow: the CPU kernels in each instruction set against the
reference, byte for byte, and what the wire format says of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.ops import allocation, eden
from lqray.quantization import allocation as tables
from lqray.quantization import lloyd_max
from tests.ops.test_backends import DTYPES, NATIVE_CPU, same

BLOCKS = [32, 64, 512, 4096, 8192]
ONCE = "awkward and not bfloat16 and not 4096 and not 4097"
SIZES = [0, 1, 33, 64, 4097, 10_000]


def check_codes(n, block_size, dtype, seed, offset):
    generator = torch.Generator().manual_seed(seed % 2**63)
    x = (torch.randn(n, generator=generator) * torch.linspace(-3, 3, max(n, 1))[:n].exp()).to(dtype)
    blocks = -(-n // block_size)
    widths = torch.randint(0, 9, (blocks,), generator=generator).to(torch.uint8)
    begins = widths.to(torch.int64).cumsum(0) - widths
    factors = 1 / ops.bucket_norms(x, block_size, "l2")
    table = lloyd_max.table()
    planes = int(widths.sum()) + 3
    codes, dots = eden.eden_encode(x, factors, widths, begins, table, planes, block_size, seed, offset)
    signed = seed - 2**64 if seed >= 2**63 else seed
    expected = eden._encode(x, factors, widths, begins, table, planes, block_size, signed, offset)
    assert same(codes, expected[0])
    assert same(dots, expected[1])
    rows = torch.stack([codes, codes.flip(0)])
    scales = torch.rand(2, blocks, generator=generator)
    seeds = torch.tensor([signed, -5])
    twice = scales, widths.expand(2, -1), begins.expand(2, -1), table, n, block_size, seeds, offset, 0.5
    assert same(eden.eden_decode_sum(rows, *twice), eden._decode_sum(rows, *twice))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.uint8), rows], dim=1)[:, 3:]  # parts of longer rows
    assert same(eden.eden_decode_sum(padded, *twice), eden._decode_sum(rows, *twice))


@NATIVE_CPU
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_of_awkward_sizes(block_size, dtype):
    for n in SIZES:
        check_codes(n, block_size, dtype, n + block_size, 7)


@NATIVE_CPU
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9000), st.sampled_from(BLOCKS), st.integers(0, 2**64 - 1), st.sampled_from(DTYPES))
def test_codes_of_anything_fuzz(n, block_size, seed, dtype):
    check_codes(n, block_size, dtype, seed, seed // 3)


def norms_of(blocks, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    norms = torch.randn(blocks, generator=generator).mul(3).exp() * scale
    norms[torch.rand(blocks, generator=generator) < 0.1] = 0
    norms[torch.rand(blocks, generator=generator) < 0.02] = float("nan")
    return norms


@NATIVE_CPU
@pytest.mark.parametrize("blocks", [0, 1, 3, 4, 5, 100, 4097])
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e-42, 1e30, 0.0])
def test_norms_and_widths_of_awkward_sizes(blocks, scale):
    norms = norms_of(blocks, blocks + 1, scale)
    of_norms = norms, tables.edges(), tables.dithers(), tables.scales(), 2**63 + 5, 3
    largest, codes, meant = allocation.block_norm_codes(*of_norms)
    expected = allocation._norm_codes(*of_norms[:4], 5 - 2**63, 3)
    assert all(same(one, other) for one, other in zip((largest, codes, meant), expected, strict=True))
    if not blocks:
        return
    rows, both = torch.stack([codes, codes.flip(0)]), torch.cat([largest, largest + 9])
    seeds = torch.tensor([5 - 2**63, 17])
    found = allocation.block_norms(rows, both, tables.scales(), seeds, 3)
    assert same(found, allocation._norms(rows, both, tables.scales(), seeds, 3))
    assert same(found[0], meant)
    for planes in (blocks, blocks + 1, 2 * blocks, 3 * blocks + 5, 9 * blocks):
        widths, begins = allocation.block_widths(rows, tables.order_of(0.5), planes)
        assert all(map(same, (widths, begins), allocation._widths(rows, tables.order_of(0.5), planes)))
        assert int((begins + widths).max()) <= planes


@NATIVE_CPU
@pytest.mark.skipif("LQRAY_CPU_ISA" in os.environ, reason="already inside the run for one instruction set")
@pytest.mark.parametrize("isa", [pytest.param("portable", marks=pytest.mark.slow), "avx2"])
def test_every_instruction_set(isa):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__, "-k", ONCE],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"LQRAY_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_lies_outside_is_refused(backend):
    """Widths and planes that the network, or a caller of torch.ops.lqray, made up."""
    if backend == "native" and ops.loaded.path is None:
        pytest.skip("no native library")
    decode = torch.ops.lqray.eden_decode_sum if backend == "native" else eden._decode_sum
    codes, scales = torch.zeros(1, 16, dtype=torch.uint8), torch.ones(1, 2)
    ends = torch.ones(1, 2, dtype=torch.uint8), torch.tensor([[0, 1]])
    rest = lloyd_max.table(), 128, 64, torch.tensor([1]), 0, 1.0
    assert decode(codes, scales, *ends, *rest).shape == (128,)
    for widths, begins in (([1, 1], [0, 2]), ([1, 2], [0, 1]), ([1, 1], [-1, 0]), ([9, 0], [0, 0])):
        wrong = torch.tensor([widths], dtype=torch.uint8), torch.tensor([begins])
        with pytest.raises((RuntimeError, ValueError), match="outside"):
            decode(codes, scales, *wrong, *rest)


def test_shapes_and_numbers_outside_the_allowed_ones_are_told():
    x, table = torch.randn(128), lloyd_max.table()
    one = torch.ones(2), torch.ones(2, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="power of two from 32 to 8192"):
        eden.eden_encode(x, *one, table, 2, 48, 1, 1)
    with pytest.raises(ValueError, match="one for each of 2 blocks"):
        eden.eden_encode(x, one[0][:1], *one[1:], table, 2, 64, 1, 1)
    with pytest.raises(ValueError, match="centroids"):
        eden.eden_encode(x, *one, table[1:], 2, 64, 1, 1)
    with pytest.raises(ValueError, match="at least one for each of 3 blocks"):
        allocation.block_widths(torch.ones(1, 3, dtype=torch.uint8), tables.order_of(1.0), 2)


def test_fakes_have_the_shapes_of_what_is_real():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, table = torch.empty(130), torch.empty(510)
        factors, widths, begins = torch.empty(3), torch.empty(3, dtype=torch.uint8), torch.empty(3, dtype=torch.int64)
        codes, dots = torch.ops.lqray.eden_encode(x, factors, widths, begins, table, 7, 64, 1, 1)
        assert (codes.shape, codes.dtype, dots.shape) == ((56,), torch.uint8, (3,))
        rows = codes[None].expand(2, -1)
        numbers = factors.expand(2, -1), widths.expand(2, -1), begins.expand(2, -1)
        seeds = torch.empty(2, dtype=torch.int64)
        mean = torch.ops.lqray.eden_decode_sum(rows, *numbers, table, 130, 64, seeds, 1, 0.5)
        assert (mean.shape, mean.dtype) == ((130,), torch.float32)
