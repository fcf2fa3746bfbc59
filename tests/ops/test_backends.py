"""One body for every backend: the CPU kernels in each instruction set, CUDA; the reference on the CPU defines the
bytes."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.ops import reference

NATIVE_CPU = pytest.mark.skipif(ops.loaded.path is None, reason=f"no native library: {ops.loaded.reason}")
CUDA = pytest.mark.skipif(
    os.environ.get("LQRAY_CUDA") != "1"
    and (not torch.cuda.is_available() or ops.native.backend("encode", "cuda") != "native"),
    reason="no CUDA device, or no native library built for CUDA (with LQRAY_CUDA=1 a failure)",
)
BACKENDS = [pytest.param("cpu", marks=NATIVE_CPU, id="native-cpu"), pytest.param("cuda", marks=CUDA, id="native-cuda")]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [0, 1, 31, 32, 33, 63, 65, 255, 257, 1009, 4099]
BUCKETS = [1, 7, 31, 33, 64, 255, 256, 1000, 2048, 8192]


def data(n: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def some_levels(bits: int, seed: int = 0) -> torch.Tensor:
    """Irregular levels; for 2 bits ternary ones, fewer than codes."""
    if bits == 2:
        return torch.tensor([-1.0, 0.0, 1.0])
    inner = torch.rand(2**bits - 2, generator=torch.Generator().manual_seed(seed)) * 1.99 - 0.995
    return torch.cat([torch.tensor([-1.0]), inner.sort()[0], torch.tensor([1.0])])


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bytes; NaN of any kind equals NaN."""
    found = found.cpu()
    if not found.is_floating_point():
        return torch.equal(found, expected)
    return torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(), expected.nan_to_num())


def check_all(device: str, x: torch.Tensor, levels: torch.Tensor, bits: int, bucket: int, seed: int, offset: int):
    """Every operator on `device` against the reference on the CPU: byte-equal."""
    n, there, levels_there = x.numel(), x.to(device), levels.to(device)
    for norm in ("l2", "linf", "rms"):
        norms = reference.bucket_norms(x, bucket, norm)
        assert same(ops.bucket_norms(there, bucket, norm), norms)
        codes = reference.encode(x, norms, levels, bits, bucket, seed, offset)
        assert same(ops.encode(there, norms.to(device), levels_there, bits, bucket, seed, offset), codes)
        payload = torch.cat([norms.view(torch.uint8), codes])
        assert same(ops.encode_fused(there, levels_there, bits, bucket, norm, seed, offset), payload)
        assert same(
            ops.decode(payload.to(device), levels_there, n, bits, bucket),
            reference.decode(payload, levels, n, bits, bucket),
        )
        other = reference.encode_fused(x, levels, bits, bucket, norm, seed, offset ^ 1)
        rows = torch.stack([payload, other, payload])
        expected = reference.decode_sum(rows, levels, n, bits, bucket, 1 / 3)
        assert same(ops.decode_sum(rows.to(device), levels_there, n, bits, bucket, 1 / 3), expected)
        base = data(n, torch.float32, 7)
        expected = reference.decode_sum(rows, levels, n, bits, bucket, 0.25, base)
        assert same(ops.decode_sum(rows.to(device), levels_there, n, bits, bucket, 0.25, base.to(device)), expected)
        expected = reference.decode_sum(rows, levels, n, bits, bucket, 1 / 3)
        longer = torch.cat([rows, torch.zeros(3, 8, dtype=torch.uint8)], dim=1).to(device)[:, : rows.shape[1]]
        assert same(ops.decode_sum(longer, levels_there, n, bits, bucket, 1 / 3), expected)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_awkward_sizes(device, dtype, n):
    for (k, bucket), bits in zip(enumerate(BUCKETS), itertools.cycle(range(1, 9))):
        check_all(device, data(n, dtype, k), some_levels(bits), bits, bucket, seed=k, offset=n)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("bucket", [2048, 4096, 8192, 16384, 8191, 8193, 1 << 20])
def test_long_tensors(device, bits, bucket):
    check_all(device, data(40_009, torch.float32, bits), some_levels(bits, bits), bits, bucket, 2**64 - 1, 2**63 + bits)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bucket", [256, 1024, 1025, 2048, 4096, 8192, 16384])
def test_the_last_bucket_may_be_short(device, bucket):
    """By one coordinate, by a tile, by all but a few."""
    for bits, n in enumerate((bucket - 1, bucket, bucket + 1, 2 * bucket + 255, 3 * bucket - 256), start=2):
        check_all(device, data(n, DTYPES[n % 3], n), some_levels(bits, n), bits, bucket, seed=n, offset=2**64 - n)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-19, 1e19, 1e38])
@pytest.mark.parametrize("bucket", [64, 100])
def test_any_scale(device, scale, bucket):
    check_all(device, data(1000, torch.float32, scale=scale), some_levels(3), 3, bucket, 1, 2)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("count", [2, 3, 8, 9, 10, 16, 17, 18, 32, 33, 34, 129, 255])
def test_any_number_of_levels(device, count):
    """Those among them that just fit a table of a kernel, and those that just do not."""
    inner = torch.rand(count - 2, generator=torch.Generator().manual_seed(count)) * 0.1 - 0.05
    levels = torch.cat([torch.tensor([-1.0]), inner.sort()[0], torch.tensor([1.0])])
    check_all(device, data(4097, torch.float32, count), levels, (count - 1).bit_length(), 2048, count, 1)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bits", [2, 5])
def test_a_coordinate_on_a_level_stays_there(device, bits):
    """Even where the uniform number is 0, as that of the last coordinate is with this seed."""
    n, levels = 14_254, torch.tensor([-1.0, 0.0, 0.25, 1.0])
    assert reference.uniforms(n, 155, 0)[-1] == 0
    if bits == 5:
        levels = torch.linspace(-1, 1, 33)[1:].clone()
    for level in levels[1:]:
        codes = ops.encode(level.repeat(n).to(device), torch.ones(1, device=device), levels.to(device), bits, n, 155, 0)
        assert int(ops.unpack(codes.cpu(), n, bits).unique()) == int((levels == level).nonzero())


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(device, bad, dtype):
    x = data(1000, dtype)
    x[[5, 300, 999]] = bad
    x[640:704] = 0
    check_all(device, x, some_levels(4), 4, 64, 1, 2)
    norms = torch.ones(16)  # given finite norms, codes are still those of the reference
    assert same(
        ops.encode(x.to(device), norms.to(device), some_levels(4).to(device), 4, 64, 1, 2),
        reference.encode(x, norms, some_levels(4), 4, 64, 1, 2),
    )


@pytest.mark.parametrize("device", BACKENDS)
def test_views(device):
    base = data(4000, torch.float32).to(device)
    levels = some_levels(3)
    for view in (base[3:1003], base[::3], base.view(4, 1000)[:, 7], base.flip(0)[:777]):
        expected = reference.encode_fused(view.cpu().contiguous(), levels, 3, 64, "linf", 1, 2)
        payload = ops.encode_fused(view, levels.to(device), 3, 64, "linf", 1, 2)
        assert torch.equal(payload.cpu(), expected)
        n = view.numel()
        odd = torch.cat([torch.zeros(1, dtype=torch.uint8, device=device), payload])[1:]
        doubled = payload.repeat_interleave(2)[::2]
        for strange in (odd, doubled):
            assert same(ops.decode(strange, levels.to(device), n, 3, 64), reference.decode(expected, levels, n, 3, 64))


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_sums_of_rows(device, count):
    for bits, n, scale in ((1, 31, -2.0), (3, 1009, 0.0), (5, 2049, 1.0), (8, 300, 1e-30)):
        levels, size = some_levels(bits), ops.norm_bytes(n, 100) + ops.code_bytes(n, bits)
        rows = torch.randint(0, 256, (count, size), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        rows[:, : ops.norm_bytes(n, 100)] = data(count * -(-n // 100), torch.float32).view(count, -1).view(torch.uint8)
        for add in (None, data(n, torch.float32, 1), data(2 * n, torch.float32, 2)[n:]):
            there = None if add is None else add.to(device)
            found = ops.decode_sum(rows.to(device), levels.to(device), n, bits, 100, scale, there)
            assert same(found, reference.decode_sum(rows, levels, n, bits, 100, scale, add))


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [1, 2, 3])
def test_tensors_that_begin_anywhere(device, dtype, start):
    """At every multiple of their elements' size, whatever a vector load would want."""
    n, levels = 515, torch.cat([torch.zeros(start), some_levels(3)]).to(device)[start:]
    x, norms = data(n + start, dtype)[start:], data(6 + start, torch.float32).abs()[start:]
    there = data(n + start, dtype).to(device)[start:]
    norms_there = data(6 + start, torch.float32).abs().to(device)[start:]
    assert same(
        ops.encode(there, norms_there, levels, 3, 100, 1, 2), reference.encode(x, norms, levels.cpu(), 3, 100, 1, 2)
    )
    payload = reference.encode_fused(x, levels.cpu(), 3, 100, "linf", 1, 2)
    assert torch.equal(ops.encode_fused(there, levels, 3, 100, "linf", 1, 2).cpu(), payload)
    moved = torch.cat([payload[:start], payload]).to(device)[start:]
    assert same(ops.decode(moved, levels, n, 3, 100), reference.decode(payload, levels.cpu(), n, 3, 100))
    found = ops.hadamard(there.float()[:512], 256, 1, 2)
    assert same(found, reference.hadamard(x.float()[:512], 256, 1, 2, False))


@pytest.mark.parametrize("device", BACKENDS)
@settings(max_examples=60)
@given(
    st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 8), st.integers(0, 2**64 - 1), st.sampled_from(DTYPES)
)
def test_anything(device, n, bucket, bits, seed, dtype):
    check_all(device, data(n, dtype, seed % 1000), some_levels(bits, seed % 7), bits, bucket, seed, seed // 3)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("block", [1, 2, 16, 256, 1024, 8192, 32768])
@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard(device, block, inverse):
    x = data(3 * block, torch.float32, block)
    expected = reference.hadamard(x, block, 5, 2**63, inverse)
    assert same(ops.hadamard(x.to(device), block, 5, 2**63, inverse), expected)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("block", [2**power for power in range(17)])
def test_hadamard_blocks_of_every_size(device, block):
    x = data(max(block, 2048), torch.float32, block)
    for inverse in (False, True):
        expected = reference.hadamard(x, block, 2**64 - block, block, inverse)
        assert same(ops.hadamard(x.to(device), block, 2**64 - block, block, inverse), expected)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bucket", [1, 2, 31, 33, 255, 257, 1024, 1025, 2048, 8192])
@pytest.mark.parametrize("norm", ["l2", "linf", "rms"])
def test_norms_and_statistics_as_in_float64(device, bucket, norm):
    """The native backends add statistics in float64, whose order shows in the last bits alone."""
    for n, shift in ((min(3 * bucket, 600) - 1, 0.0), (2 * bucket + 1, 3.0), (bucket, 1e4), (bucket + 32, -1e5)):
        x = data(n, torch.float32, n) + shift
        x[-1] = 9 * shift + 9  # the last one counts
        found = [column.cpu() for column in ops.bucket_statistics(x.to(device), bucket, norm)]
        norms = ops.bucket_norms(x.to(device), bucket, norm).cpu()
        for at, part in enumerate(x.double().split(bucket)):
            expected = part.abs().max() if norm == "linf" else part.norm()
            if norm == "rms" and part.numel() > 1:
                expected = part.square().mean().sqrt() * bucket**0.5
            torch.testing.assert_close(norms[at].double(), expected, rtol=0 if norm == "linf" else 3e-7, atol=0)
            sigma = part.std() if part.numel() > 1 else torch.zeros((), dtype=torch.float64)
            for column, value in zip(found, (expected, part.mean() / expected, sigma / expected), strict=True):
                torch.testing.assert_close(column[at], value, rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["l2", "linf", "rms"])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_bucket_statistics(device, dtype, norm, shift):
    x = (data(1000, torch.float32) + shift).to(dtype)
    x[700] = float("nan")
    for bucket in (1, 64, 300, 8192):
        found = [column.cpu() for column in ops.bucket_statistics(x.to(device), bucket, norm)]
        for ours, expected in zip(found, reference.bucket_statistics(x, bucket, norm), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-9, equal_nan=True)
    constant = torch.full((8192,), 0.1).to(device)
    assert float(ops.bucket_statistics(constant, 8192, norm)[2]) == 0


@pytest.mark.parametrize("device", BACKENDS)
def test_a_code_beyond_the_last_level_decodes_as_the_last(device):
    levels = torch.tensor([-1.0, 0.0, 1.0])
    payload = torch.cat([torch.tensor([2.0]).view(torch.uint8), torch.full((8,), 255, dtype=torch.uint8)])
    decoded = ops.decode(payload.to(device), levels.to(device), 32, 2, 32).cpu()
    assert torch.equal(decoded, torch.full((32,), 2.0))


@pytest.mark.parametrize("device", BACKENDS)
def test_the_library_itself_refuses_what_the_wrappers_would(device):
    """torch.ops called directly, around the checks of lqray.ops."""
    levels = torch.linspace(-1, 1, 8).to(device)
    payload = torch.zeros(100, dtype=torch.uint8, device=device)
    raw = torch.ops.lqray
    for call in (
        lambda: raw.decode(payload, levels, 1000, 3, 64),
        lambda: raw.decode(payload, levels, -1, 3, 64),
        lambda: raw.decode(payload[:0], levels, 32, 3, 64),
        lambda: raw.decode_sum(payload, levels, 32, 3, 64, 1.0),
        lambda: raw.decode(payload[:16], levels, 32, 2, 64),
        lambda: raw.decode_sum(payload[:16].view(1, 16), levels, 32, 3, 64, 1.0, levels),
        lambda: raw.encode(torch.ones(64, device=device), levels[:1], levels, 3, 32, 0, 0),
        lambda: raw.encode_fused(torch.ones(64, device=device), levels, 9, 32, "l2", 0, 0),
        lambda: raw.encode_fused(torch.ones(64, device=device), levels, 3, 0, "l2", 0, 0),
        lambda: raw.encode_fused(torch.ones(64, device=device), levels, 3, 32, "l1", 0, 0),
        lambda: raw.bucket_norms(torch.ones(64, device=device, dtype=torch.float64), 32, "l2"),
        lambda: raw.hadamard(torch.ones(63, device=device), 32, 0, 0, False),
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("device", BACKENDS)
def test_compiled_with_fullgraph_and_inside_autograd(device):
    levels = torch.linspace(-1, 1, 8, device=device)

    def there_and_back(x):
        payload = torch.ops.lqray.encode_fused(x * 2, levels, 3, 64, "l2", 1, 2)
        return torch.ops.lqray.decode(payload, levels, 200, 3, 64) + 1

    x = data(200, torch.float32).to(device)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), there_and_back(x))
    y = x.clone().requires_grad_()
    assert torch.equal(there_and_back(y).detach(), there_and_back(x))


@pytest.mark.skipif(os.environ.get("LQRAY_CUDA") != "1", reason="only with LQRAY_CUDA=1")
def test_cuda_kernels_that_are_asked_for_are_those_that_ran():
    """The reference would pass all other tests for CUDA."""
    assert torch.cuda.is_available()
    assert {name: ops.native.backend(name, "cuda") for name in ops.native.OPERATORS} == dict.fromkeys(
        ops.native.OPERATORS, "native"
    )


@CUDA
def test_a_cuda_graph_captures_an_exchange():
    levels = torch.linspace(-1, 1, 8, device="cuda")
    x = data(100_000, torch.float32).cuda()

    def step():
        payload = ops.encode_fused(x, levels, 3, 8192, "l2", 1, 2)
        return ops.decode_sum(torch.stack([payload, payload]), levels, x.numel(), 3, 8192, 0.5)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(data(100_000, torch.float32, 1))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, step())


@NATIVE_CPU
@pytest.mark.skipif("LQRAY_CPU_ISA" in os.environ, reason="already inside the run for one instruction set")
@pytest.mark.parametrize("isa", ["portable", pytest.param("avx2", marks=pytest.mark.slow)])
def test_every_instruction_set_gives_the_same_bytes(isa):
    """These tests and those of norms again, held back to a lesser machine; of long tensors one bucket size."""
    if isa == ops.loaded.instruction_set:
        pytest.skip(f"{isa} is the best that this machine has: the tests above ran with it")
    cases = "native-cpu and not compiled and (not long_tensors or 8193)"
    files = [str(Path(__file__).with_name(name)) for name in ("test_backends.py", "test_norms.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", cases],
        env=os.environ | {"LQRAY_CPU_ISA": isa},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    code = "from lqray import ops; print(ops.loaded.instruction_set)"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LQRAY_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() in {isa, "portable"}


def test_without_the_native_library_the_reference_serves():
    """`LQRAY_NATIVE=0 make test` runs the whole suite so; here: it is quiet, complete, and the bytes are the same."""
    code = (
        "import torch; from lqray import ops; x = torch.arange(1000.0); l = torch.linspace(-1, 1, 8);"
        "print(ops.loaded.path, ops.native.backend('encode', 'cpu'), ops.encode_fused(x, l, 3, 64, 'linf', 1, 2).sum())"
    )
    shown = {}
    for value in ("0", "1"):
        environment = {**os.environ, "LQRAY_NATIVE": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        shown[value] = done.stdout.split()
    assert shown["0"][:2] == ["None", "reference"]
    assert shown["0"][-1] == shown["1"][-1]


def test_a_library_that_does_not_load_says_so_and_the_reference_serves(tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a library")
    done = subprocess.run(
        [sys.executable, "-c", "from lqray import ops; print(ops.loaded.path)"],
        env={**os.environ, "LQRAY_NATIVE": "1", "LQRAY_NATIVE_LIBRARY": str(broken)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None"
    assert done.stderr.count("slow") == 1
    assert "`lqray build-native` builds it anew" in done.stderr


@NATIVE_CPU
@pytest.mark.skipif("LQRAY_TEST_LARGE" not in os.environ, reason="needs 15 GB: LQRAY_TEST_LARGE=1")
def test_more_than_two_to_the_31_coordinates():
    n = 2**31 + 1000
    x = torch.zeros(n, dtype=torch.bfloat16)
    x[-1000:] = data(1000, torch.bfloat16)
    levels = torch.tensor([-1.0, 1.0])
    payload = ops.encode_fused(x, levels, 1, 2**20, "linf", 1, 2)
    decoded = ops.decode(payload, levels, n, 1, 2**20)
    largest = float(x[-1000:].float().abs().max())
    assert decoded[:-1000].abs().max() == 0
    assert torch.equal(decoded[-1000:].abs(), torch.full((1000,), largest))
    assert 0 < int((decoded[-1000:] > 0).sum()) < 1000
