"""Codes of rotated blocks, norms in a byte and widths that follow: every backend, and the CPU kernels in each set of
instructions, against the reference, byte for byte, and what the wire format says of them."""

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
from tests.ops.test_backends import BACKENDS, DTYPES, NATIVE_CPU, same

BLOCKS = [32, 64, 512, 4096, 8192]
ONCE = "awkward and native-cpu and not bfloat16 and not 4096 and not 4097"
SIZES = [0, 1, 33, 64, 4097, 10_000]
EXAMPLES = min(25, int(os.environ.get("LQRAY_FUZZ_EXAMPLES", "25")))


def signed(seed):
    return seed - 2**64 if seed >= 2**63 else seed


def layout(widths):
    """Widths, and planes that follow each other."""
    return widths, widths.to(torch.int64).cumsum(-1) - widths


def some_blocks(n, block_size, dtype, seed):
    """(x, factors, widths, begins, centroids, planes) of eden_encode."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    x = (torch.randn(n, generator=generator) * torch.linspace(-3, 3, max(n, 1))[:n].exp()).to(dtype)
    widths = torch.randint(0, 9, (-(-n // block_size),), generator=generator).to(torch.uint8)
    widths, begins = layout(widths)
    factors = 1 / ops.bucket_norms(x, block_size, "l2")
    return x, factors, widths, begins, lloyd_max.table(), int(widths.sum()) + 3


def on(device, arguments):
    return [one.to(device) if isinstance(one, torch.Tensor) else one for one in arguments]


def check_codes(device, n, block_size, dtype, seed, offset, no_number=False):
    x, factors, widths, begins, table, planes = some_blocks(n, block_size, dtype, seed)
    if no_number and n:
        x[n // 2] = float("nan")
    of_codes = x, factors, widths, begins, table, planes, block_size
    codes, dots = eden.eden_encode(*on(device, of_codes), seed, offset)
    expected = eden._encode(*of_codes, signed(seed), offset)
    assert same(codes, expected[0])
    assert same(dots, expected[1])
    codes = expected[0]
    rows = torch.stack([codes, codes.flip(0)])
    scales = torch.rand(2, len(widths), generator=torch.Generator().manual_seed(1))
    seeds = torch.tensor([signed(seed), -5])
    twice = scales, *layout(torch.stack([widths, widths.flip(0)])), table, n, block_size, seeds, offset, 0.5
    expected = eden._decode_sum(rows, *twice)
    there = on(device, twice)
    assert same(eden.eden_decode_sum(rows.to(device), *there), expected)
    wide = torch.nn.functional.pad(rows, (3, 4)).to(device)  # rows may be parts of longer ones, wherever they begin
    for part in (wide[:, 3:-4], wide[:, 3:-2], torch.nn.functional.pad(rows, (4, 0)).to(device)[:, 4:]):
        assert same(eden.eden_decode_sum(part, *there), expected)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_of_blocks_of_awkward_sizes(device, block_size, dtype):
    for n in SIZES:
        check_codes(device, n, block_size, dtype, n + block_size, 7)


@pytest.mark.parametrize("device", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 9000), st.sampled_from(BLOCKS), st.integers(0, 2**64 - 1), st.sampled_from(DTYPES), st.booleans())
def test_codes_of_any_blocks_fuzz(device, n, block_size, seed, dtype, no_number):
    check_codes(device, n, block_size, dtype, seed, seed // 3, no_number)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("block_size", [128, 1024, 2048])
def test_codes_of_blocks_of_spans_beyond_the_first(device, block_size):
    """More than a CUDA block works on at a time, and no row at all."""
    check_codes(device, 27_011, block_size, torch.float32, block_size, 2**63 + 1)
    none = torch.empty(0, 5)
    rows = torch.empty(0, 16, dtype=torch.uint8), none, none.to(torch.uint8), none.to(torch.int64), lloyd_max.table()
    seeds = torch.empty(0, dtype=torch.int64)
    mean = eden.eden_decode_sum(*on(device, rows), 5 * block_size, block_size, seeds.to(device), 1, 0.5)
    assert same(mean, torch.zeros(5 * block_size))


def norms_of(blocks, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    norms = torch.randn(blocks, generator=generator).mul(3).exp() * scale
    norms[torch.rand(blocks, generator=generator) < 0.1] = 0
    norms[torch.rand(blocks, generator=generator) < 0.02] = float("nan")
    return norms


def check_widths(device, rows, planes):
    widths, begins = allocation.block_widths(*on(device, (rows, tables.order_of(0.5))), planes)
    assert all(map(same, (widths, begins), allocation._widths(rows, tables.order_of(0.5), planes)))
    assert int((begins + widths).max()) <= planes


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("blocks", [0, 1, 3, 4, 5, 100, 4097])
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e-42, 1e30, 0.0])
def test_norms_and_widths_of_blocks_of_awkward_sizes(device, blocks, scale):
    norms = norms_of(blocks, blocks + 1, scale)
    of_norms = norms, tables.edges(), tables.dithers(), tables.scales()
    found = allocation.block_norm_codes(*on(device, of_norms), 2**63 + 5, 3)
    expected = allocation._norm_codes(*of_norms, 5 - 2**63, 3)
    assert all(map(same, found, expected))
    if not blocks:
        return
    largest, codes, meant = expected
    rows, both = torch.stack([codes, codes.flip(0)]), torch.cat([largest, largest + 9])
    of_codes = rows, both, tables.scales(), torch.tensor([5 - 2**63, 17])
    norms = allocation.block_norms(*on(device, of_codes), 3)
    assert same(norms, allocation._norms(*of_codes, 3))
    assert same(norms[0], meant)
    for planes in (blocks, blocks + 1, 2 * blocks, 3 * blocks + 5, 9 * blocks):
        check_widths(device, rows, planes)


@pytest.mark.parametrize("device", BACKENDS)
def test_widths_of_many_blocks(device):
    """More than a CUDA block counts at a time, of which some have one bit more: among the first ones, the last ones and
    those in the middle."""
    codes = torch.randint(200, 230, (2, 40_003), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    codes[0, :3], codes[1, :30_000] = 1, 7
    for planes in (80_100, 100_000, 131_077, 9 * 40_003):
        check_widths(device, codes, planes)
    check_widths(device, torch.full((1, 40_003), 9, dtype=torch.uint8), 60_000)


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


OUTSIDE = [([1, 1], [2, 0]), ([2, 1], [1, 0]), ([1, 1], [-1, 0]), ([9, 0], [0, 0])]
"""Widths and planes, of which there are two, that the network, or a caller of torch.ops.lqray, made up."""


@pytest.mark.parametrize("device", [*BACKENDS[:1], "reference"])
def test_what_lies_outside_is_refused(device):
    if ops.loaded.instruction_set == "emulated CUDA":
        pytest.skip("a GPU's memory is not looked at by the host")
    decode = eden._decode_sum if device == "reference" else torch.ops.lqray.eden_decode_sum
    codes, scales = torch.zeros(1, 16, dtype=torch.uint8), torch.ones(1, 2)
    rest = lloyd_max.table(), 128, 64, torch.tensor([1]), 0, 1.0
    ends = torch.ones(1, 2, dtype=torch.uint8), torch.tensor([[0, 1]])
    assert decode(codes, scales, *ends, *rest).shape == (128,)
    for widths, begins in OUTSIDE:
        wrong = torch.tensor([widths], dtype=torch.uint8), torch.tensor([begins])
        with pytest.raises((RuntimeError, ValueError), match="outside"):
            decode(codes, scales, *wrong, *rest)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("block_size", [64, 4096])
def test_what_lies_outside_on_a_gpu_is_no_number_and_others_are_as_they_were(device, block_size):
    """Which the host does not see, since it does not wait; nothing changes for blocks that lie within."""
    if device == "cpu" and ops.loaded.instruction_set != "emulated CUDA":
        pytest.skip("the host sees what is in its own memory")
    x, factors, table = torch.randn(2 * block_size), torch.ones(2), lloyd_max.table()
    for widths, begins in OUTSIDE:
        made_up = torch.tensor(widths, dtype=torch.uint8), torch.tensor(begins)
        within = torch.tensor([0, widths[1]], dtype=torch.uint8), torch.tensor([0, begins[1]])
        codes, dots = eden.eden_encode(*on(device, (x, factors, *made_up, table)), 2, block_size, 1, 2)
        expected = eden._encode(x, factors, *within, table, 2, block_size, 1, 2)
        assert same(codes, expected[0])
        assert dots[0].isnan()
        assert same(dots[1], expected[1][1])
        rows, scales, seeds = expected[0][None], torch.ones(1, 2), torch.tensor([7])
        rest = table, 2 * block_size, block_size, seeds, 0, 1.0
        mean = eden.eden_decode_sum(*on(device, (rows, scales, *(one[None] for one in made_up), *rest)))
        expected = eden._decode_sum(rows, scales, *(one[None] for one in within), *rest)
        assert mean[:block_size].isnan().all()
        assert same(mean[block_size:], expected[block_size:])


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
