"""Codes of blocks on grids, and norms in a byte that no coordinate exceeds: the CPU kernels in each instruction set
against the reference, byte for byte, and what the wire format says of them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.ops import grids
from lqray.ops.checks import signed
from lqray.ops.grids import Noise
from lqray.quantization import allocation as tables
from lqray.quantization import linf_slopes
from tests.ops.test_backends import DTYPES, NATIVE_CPU, same
from tests.ops.test_blocks import norms_of

BLOCKS = [32, 64, 512, 4096]
ONCE = "(awkward or nothing) and not bfloat16 and not 4096"
SIZES = [0, 1, 33, 64, 255, 4097]
GRIDS = {"uniform": (None, None), "slopes": (linf_slopes.levels(), linf_slopes.slopes())}
EXAMPLES = int(os.environ.get("LQRAY_FUZZ", "25"))


def reference_encode(x, norms, widths, begins, grid, planes, block_size, noise):
    numbers = signed(noise.seed), signed(noise.offset), noise.phase, signed(noise.shared_seed)
    return grids._grid_encode(
        x, norms, widths, begins, *grid, planes, block_size, *numbers, noise.worker, noise.workers
    )


def check_codes(n, block_size, dtype, seed, offset, scale=1.0):
    generator = torch.Generator().manual_seed(seed % 2**63)
    x = (torch.randn(n, generator=generator) * torch.linspace(-3, 3, max(n, 1))[:n].exp() * scale).to(dtype)
    blocks = -(-n // block_size)
    widths = torch.randint(0, 9, (blocks,), generator=generator).to(torch.uint8)
    begins = widths.to(torch.int64).cumsum(0) - widths
    _, _, norms = grids.ceiling_codes(ops.bucket_norms(x, block_size, "linf"), tables.ceiling_scales())
    norms[torch.rand(blocks, generator=generator) < 0.03] = math.nan
    planes = int(widths.sum()) + 3
    own, correlated = Noise(seed, offset, 0xDEADBEEF), Noise(seed, offset, 0, 99, 2, 3)
    phases = torch.tensor([0xDEADBEEF - 2**32, 7], dtype=torch.int32)
    for grid in GRIDS.values():
        for noise in (own, correlated):
            given = x, norms, widths, begins, *grid, planes, block_size, noise
            codes = grids.grid_encode(*given)
            assert same(codes, reference_encode(*given[:4], grid, *given[6:]))
        rows = torch.stack([codes, codes.flip(0)])
        twice = norms.expand(2, -1) * torch.tensor([[1.0], [0.3]]), widths.expand(2, -1), begins.expand(2, -1)
        rest = *grid, n, block_size, seed, offset, 0.5
        for known in (phases, None) if grid[0] is None else (phases,):
            expected = grids._grid_decode_sum(rows, *twice, known, *rest[:4], signed(seed), signed(offset), 0.5)
            assert same(grids.grid_decode_sum(rows, *twice, known, *rest), expected)
            padded = torch.cat([torch.zeros(2, 3, dtype=torch.uint8), rows], dim=1)[:, 3:]  # parts of longer rows
            assert same(grids.grid_decode_sum(padded, *twice, known, *rest), expected)


@NATIVE_CPU
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_of_awkward_sizes(block_size, dtype):
    for n in SIZES:
        check_codes(n, block_size, dtype, n + block_size, 7)


@NATIVE_CPU
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30])
def test_codes_of_awkward_scales(scale):
    check_codes(1000, 64, torch.float32, 5, 2**63 + 7, scale)


@NATIVE_CPU
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 9000), st.sampled_from([*BLOCKS, 8192]), st.integers(0, 2**64 - 1), st.sampled_from(DTYPES))
def test_codes_of_anything_fuzz(n, block_size, seed, dtype):
    check_codes(n, block_size, dtype, seed, seed // 3)


@NATIVE_CPU
@pytest.mark.parametrize("blocks", [0, 1, 3, 100, 4097])
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e-42, 1e30, 0.0])
def test_norms_of_awkward_sizes(blocks, scale):
    norms, scales = norms_of(blocks, blocks + 1, scale), tables.ceiling_scales()
    found = grids.ceiling_codes(norms, scales)
    assert all(map(same, found, grids._ceiling_codes(norms, scales)))
    largest, codes, meant = found
    rows, both = torch.stack([codes, codes.flip(0)]), torch.cat([largest, largest + 9])
    assert same(grids.ceilings(rows, both, scales), grids._ceilings(rows, both, scales))
    assert same(grids.ceilings(rows, both, scales)[0], meant)
    for wild in (2**31 - 1, -(2**31)):  # as nobody sends them
        wilder = torch.tensor([wild, -wild // 2], dtype=torch.int32)
        assert same(grids.ceilings(rows, wilder, scales), grids._ceilings(rows, wilder, scales))


def test_a_norm_is_rounded_up_by_less_than_an_eighth_of_a_doubling():
    """Whatever it is: subnormal, a power of two, a neighbour of one, the largest number."""
    exact = torch.arange(-149, 128).double().exp2().to(torch.float32)
    odd = torch.exp2(torch.arange(-1190, 1024) / 8.0).to(torch.float32)
    largest = torch.tensor([torch.finfo(torch.float32).max])
    for norms in (exact, odd, odd.nextafter(largest), odd.nextafter(-largest), largest):
        kept = norms[norms > 0]
        for norm in (kept, kept[:1], kept[-1:]):
            _, codes, meant = grids.ceiling_codes(norm, tables.ceiling_scales())
            assert meant.isfinite().all()
            assert (meant >= norm).all()
            near = (codes > 1) & (norm > 2.0**-120)
            assert (meant[near].double() <= norm[near].double() * 2**0.125 * (1 + 1e-6)).all()
    _, codes, meant = grids.ceiling_codes(torch.tensor([1.0, 0.5, 0.25, 0.125]), tables.ceiling_scales())
    assert codes.tolist() == [254, 246, 238, 230]
    assert meant.tolist() == [1.0, 0.5, 0.25, 0.125]


def rounded(r, grid, width, dithered, draws=4096):
    """What numbers (m,) of [-1, 1] decode to, (draws, m), m a multiple of 32."""
    x = r.repeat(draws)
    blocks = x.numel() // 32
    norms, widths = torch.ones(blocks), torch.full((blocks,), width, dtype=torch.uint8)
    begins = torch.arange(blocks) * width
    codes = grids.grid_encode(x, norms, widths, begins, *grid, width * blocks, 32, Noise(3, 4, 5 if dithered else 0))
    phases = torch.tensor([5], dtype=torch.int32) if dithered else None
    rest = *grid, x.numel(), 32, 3, 4, 1.0
    return grids.grid_decode_sum(codes[None], norms[None], widths[None], begins[None], phases, *rest).view(draws, -1)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("inner", ["rounding", "dither", "slopes"])
def test_every_number_comes_back_on_average_up_to_the_edges(inner, width):
    """By z-test of 65,536 roundings of each of 64 numbers, of which the largest z is below 4.5 in 999 of 1,000 runs; a
    dither's error has the variance of a uniform one whatever the signal."""
    r = torch.cat([torch.linspace(-1, 1, 33), torch.tensor([1e-5, -1e-5, 0.999, -0.999]), torch.rand(27) * 2 - 1])
    decoded = rounded(r, GRIDS["slopes" if inner == "slopes" else "uniform"], width, inner != "rounding", 2**16)
    error = decoded.double() - r.double()
    assert ((error.mean(dim=0).abs()) <= 4.5 * error.std(dim=0) / 2**8 + 2e-7).all()
    step = 2 / (2**width - 1)
    if inner == "dither":
        assert error.square().mean(dim=0) == pytest.approx(torch.full((64,), step**2 / 12).double(), rel=0.03)
        assert float(error.abs().max()) <= step / 2 + 1e-6
    elif inner == "rounding":
        assert float(error.abs().max()) <= step + 1e-6
        assert not error[:, 0].any()
        assert not error[:, 32].any()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_largest_coordinate_never_becomes_a_code_beyond_the_last(backend):
    """255 + u is rounded to 256 once in 2**17 times: of 2**20 coordinates it would be seen."""
    if backend == "native" and ops.loaded.path is None:
        pytest.skip("no native library")
    n, blocks = 2**20, 2**12
    encode = torch.ops.lqray.grid_encode if backend == "native" else grids._grid_encode
    widths, begins = torch.full((blocks,), 8, dtype=torch.uint8), torch.arange(blocks) * 8
    codes = encode(torch.ones(n), torch.ones(blocks), widths, begins, None, None, 8 * blocks, 256, 1, 2, 0, 0, 0, 1)
    assert (codes == 255).all()


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
    decode = torch.ops.lqray.grid_decode_sum if backend == "native" else grids._grid_decode_sum
    encode = torch.ops.lqray.grid_encode if backend == "native" else grids._grid_encode
    codes, norms = torch.zeros(1, 16, dtype=torch.uint8), torch.ones(1, 2)
    ends = torch.ones(1, 2, dtype=torch.uint8), torch.tensor([[0, 1]])
    rest = None, None, None, 128, 64, 1, 0, 1.0
    assert decode(codes, norms, *ends, *rest).shape == (128,)
    for widths, begins in (([1, 1], [0, 2]), ([1, 2], [0, 1]), ([1, 1], [-1, 0]), ([9, 0], [0, 0])):
        wrong = torch.tensor([widths], dtype=torch.uint8), torch.tensor([begins])
        with pytest.raises((RuntimeError, ValueError), match="outside"):
            decode(codes, norms, *wrong, *rest)
        with pytest.raises((RuntimeError, ValueError), match="outside"):
            encode(torch.ones(128), norms[0], *(each[0] for each in wrong), None, None, 2, 64, 1, 0, 0, 0, 0, 1)


def test_shapes_and_numbers_outside_the_allowed_ones_are_told():
    x, (levels, slopes) = torch.randn(128), GRIDS["slopes"]
    one = torch.ones(2), torch.ones(2, dtype=torch.uint8), torch.tensor([0, 1])
    noise, none = Noise(1, 1), (None, None)
    with pytest.raises(ValueError, match="power of two from 32 to 8192"):
        grids.grid_encode(x, *one, *none, 2, 48, noise)
    with pytest.raises(ValueError, match="norms is .* one for each of 2 blocks"):
        grids.grid_encode(x, one[0][:1], *one[1:], *none, 2, 64, noise)
    with pytest.raises(ValueError, match="levels is"):
        grids.grid_encode(x, *one, levels[1:], slopes, 2, 64, noise)
    with pytest.raises(ValueError, match="one of levels and slopes is None"):
        grids.grid_encode(x, *one, levels, None, 2, 64, noise)
    with pytest.raises(ValueError, match="phase is"):
        grids.grid_encode(x, *one, *none, 2, 64, Noise(1, 1, 2**32))
    with pytest.raises(ValueError, match="worker 3 of 3"):
        grids.grid_encode(x, *one, *none, 2, 64, Noise(1, 1, worker=3, workers=3))
    rows = torch.zeros(1, 16, dtype=torch.uint8), *(each[None] for each in one)
    with pytest.raises(ValueError, match="one for each row"):
        grids.grid_decode_sum(*rows, None, levels, slopes, 128, 64, 1, 1, 1.0)
    with pytest.raises(ValueError, match="phases is"):
        grids.grid_decode_sum(*rows, torch.zeros(2, dtype=torch.int32), *none, 128, 64, 1, 1, 1.0)


def test_fakes_have_the_shapes_of_what_is_real():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, scales = torch.empty(130), torch.empty(8)
        norms, widths, begins = torch.empty(3), torch.empty(3, dtype=torch.uint8), torch.empty(3, dtype=torch.int64)
        largest, bytes_of_norms, meant = torch.ops.lqray.ceiling_codes(norms, scales)
        assert (largest.shape, bytes_of_norms.dtype, meant.shape) == ((1,), torch.uint8, (3,))
        assert torch.ops.lqray.ceilings(bytes_of_norms[None], largest, scales).shape == (1, 3)
        codes = torch.ops.lqray.grid_encode(x, norms, widths, begins, None, None, 7, 64, 1, 1, 0, 0, 0, 1)
        assert (codes.shape, codes.dtype) == ((56,), torch.uint8)
        rows = codes[None].expand(2, -1)
        numbers = norms.expand(2, -1), widths.expand(2, -1), begins.expand(2, -1)
        mean = torch.ops.lqray.grid_decode_sum(rows, *numbers, None, None, None, 130, 64, 1, 1, 0.5)
        assert (mean.shape, mean.dtype) == ((130,), torch.float32)
