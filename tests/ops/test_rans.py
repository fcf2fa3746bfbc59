"""Entropy coding of codes: the kernels in each instruction set against the reference, to the byte, and any bytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.ops import rans_reference, reference
from lqray.quantization.entropy import entropy_bits
from tests.ops.test_fuzz import EXAMPLES

NATIVE = pytest.mark.skipif(ops.loaded.path is None, reason=f"no native library here: {ops.loaded.reason}")
MANY = 63 * 2048 + 1
"""The fewest codes whose 64 lanes kernels take side by side."""
SIZES = [0, 1, 2, 63, 64, 65, 2047, 2048, 2049, 4097, MANY - 1, MANY, 131_071, 131_072, 131_137, 2**19, 2**19 + 1]


def codes_of(n: int, bits: int, skew: float, seed: int = 0) -> torch.Tensor:
    """n codes; skew 1: all alike, towards 0: ever more of them 0."""
    drawn = np.random.default_rng(seed).random(n) ** (1 / skew)
    return torch.from_numpy((2**bits * drawn).astype(np.uint8))


def check(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Both backends make the same stream of codes, and of the stream the codes; returns it."""
    stream = ops.rans_encode(codes, bits)
    expected, fault = rans_reference.rans_encode(codes, bits)
    assert not fault
    assert torch.equal(stream, expected)
    assert torch.equal(ops.rans_decode(stream, codes.numel(), bits), codes)
    if codes.numel() < 10_000:  # it takes its time
        found, fault = rans_reference.rans_decode(stream, codes.numel(), bits)
        assert not fault
        assert torch.equal(found, codes)
    return stream


@pytest.mark.parametrize("n", SIZES)
def test_kernels_and_reference_make_the_same_streams_of_awkward_sizes_fuzz(n):
    for bits in range(1, 9) if n < 10_000 or n == MANY else (n % 3 + 1, 5):
        for skew in (1.0, 0.2, 0.01):
            check(codes_of(n, bits, skew), bits)


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(st.integers(0, 300), st.booleans(), st.integers(1, 8), st.integers(0, 2**32 - 1), st.floats(0.005, 1))
def test_kernels_and_reference_make_the_same_streams_fuzz(more, many, bits, seed, skew):
    check(codes_of(MANY * many + more, bits, skew, seed), bits)


@pytest.mark.parametrize("n", [1, 5000, MANY + 70])
@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8])
def test_extreme_frequencies_fuzz(n, bits):
    """One code alone, at the least frequency once, all but once, in alternation, all codes of which one is frequent."""
    last = 2**bits - 1
    for alone in (0, last):
        stream = check(torch.full((n,), alone, dtype=torch.uint8), bits)
        assert stream.numel() == max(16, 2**bits) // 8 + 2
    once = torch.zeros(n, dtype=torch.uint8)
    once[n // 2] = last
    check(once, bits)
    check(last - once, bits)
    check(torch.arange(n).remainder(2).to(torch.uint8) * last, bits)
    rare = torch.full((n,), last, dtype=torch.uint8)
    rare[:: max(1, n // 500)] = torch.arange(len(rare[:: max(1, n // 500)])).remainder(2**bits).to(torch.uint8)
    check(rare, bits)


def test_the_bytes_of_a_stream():
    """Of 3 bits, codes 1 and 6: 5 of 8 and 3 of 8 have 10,240 and 6,144 of 16,384 slots; one lane, which begins at
    2**16, takes up 6 + 5 * 0.68 + 3 * 1.42 bits and so gives no word away."""
    stream = ops.rans_encode(torch.tensor([1, 6, 1, 1, 6, 1, 6, 1], dtype=torch.uint8), 3)
    state = 1 << 16
    for width, begin in (
        [(10240, 0), (6144, 10240), (10240, 0), (6144, 10240)]
        + 2 * [(10240, 0)]
        + [
            (6144, 10240),
            (10240, 0),
        ]
    ):
        state = (state // width << 14) + state % width + begin
    expected = bytes([0b01000010, 0, *(10240).to_bytes(2, "little"), *(6144).to_bytes(2, "little")])
    assert bytes(stream.tolist()) == expected + state.to_bytes(4, "little")
    assert ops.rans_encode(torch.empty(0, dtype=torch.uint8), 3).numel() == 0


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("skew", [1.0, 0.3, 0.05, 0.01])
def test_within_a_hundredth_of_the_entropy_beside_the_head(bits, skew):
    n = 400_000
    codes = codes_of(n, bits, skew)
    counts = np.bincount(codes.numpy())
    head = max(16, 2**bits) // 8 + 2 * int((counts > 0).sum()) + 4 * rans_reference.lanes_of(n)
    coded = ops.rans_encode(codes, bits).numel() - head
    assert coded <= 1.01 * entropy_bits(counts) * n / 8


def faults(stream: np.ndarray, n: int, bits: int) -> tuple[int, torch.Tensor]:
    """What both backends find wrong, which is the same, and the codes."""
    wrong = torch.from_numpy(np.ascontiguousarray(stream))
    codes, fault = rans_reference.rans_decode(wrong, n, bits)
    if ops.loaded.path is not None:
        found, native = torch.ops.lqray.rans_decode(wrong, n, bits)
        assert native == fault
        assert fault or torch.equal(found, codes)
    return fault, codes


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from([1, 70, 5000, MANY + 3]),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 1),
    st.data(),
)
def test_damaged_streams_are_faults_alike_fuzz(n, bits, seed, skew, data):
    stream = ops.rans_encode(codes_of(n, bits, skew, seed), bits).numpy().copy()
    draw = np.random.default_rng(seed)
    kind = data.draw(st.sampled_from(["bits", "bytes", "cut", "words swapped", "longer", "noise behind the head"]))
    if kind == "bits":
        for bit in draw.integers(0, 8 * stream.size, draw.integers(1, 9)).tolist():
            stream[bit // 8] ^= 1 << bit % 8
    elif kind == "bytes":
        stream[draw.integers(stream.size) :] = draw.integers(256)
    elif kind == "cut":
        stream = stream[: draw.integers(stream.size)]
    elif kind == "words swapped":
        stream[-stream.size // 2 :] = stream[-stream.size // 2 :][::-1]
    elif kind == "longer":
        stream = np.append(stream, stream[: draw.integers(1, 9)])
    else:
        begin = min(stream.size, max(16, 2**bits) // 8 + 2 * 2**bits)
        stream[begin:] = draw.integers(0, 256, stream.size - begin)
    fault, codes = faults(stream, n, bits)
    assert fault or codes.numel() == n


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 600), st.sampled_from([0, 1, 64, 5000, MANY]), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_any_bytes_are_codes_or_a_fault_fuzz(size, n, bits, seed):
    faults(np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8), n, bits)


@pytest.mark.parametrize(("n", "bits"), [(5000, 3), (MANY, 1), (MANY, 6)])
def test_no_flipped_bit_of_a_stream_is_missed_fuzz(n, bits):
    """Each is caught by one of: frequencies, states at the beginning and at the end, words and their number."""
    stream = ops.rans_encode(codes_of(n, bits, 0.3), bits).numpy()
    places = np.random.default_rng(0).integers(0, 8 * stream.size, 300 if n == 5000 else 20).tolist()
    for bit in [*range(0, 8 * (2**bits // 8 + 2), 5), *places]:
        damaged = torch.from_numpy(stream.copy())
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="an entropy-coded stream"):
            ops.rans_decode(damaged, n, bits)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 4099])
def test_planes_and_codes_of_awkward_sizes_fuzz(n, bits):
    """Higher bits than a code has do not reach its neighbours."""
    codes = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    planes = ops.pack(codes, bits)
    assert torch.equal(planes, reference.pack(codes, bits))
    assert torch.equal(ops.unpack(planes, n, bits), codes & (2**bits - 1))
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), codes])[1:]
    assert torch.equal(ops.pack(shifted, bits), planes)
    assert torch.equal(ops.rans_encode(shifted, 8), ops.rans_encode(codes, 8))


def test_operators_alone_refuse_what_the_wrappers_refuse():
    codes, planes = torch.zeros(40, dtype=torch.uint8), torch.zeros(24, dtype=torch.uint8)
    rans = ops.rans_encode(codes, 3)
    calls = {
        "pack": [(codes.int(), 3), (codes.view(2, -1), 3), (codes, 0), (codes, 9)],
        "unpack": [(planes[1:], 40, 3), (planes.int(), 40, 3), (planes, 40, 4), (planes, -1, 3), (planes, 2**60, 3)],
        "rans_encode": [(codes.int(), 3), (codes.view(2, -1), 3), (codes, 0), (codes, 9)],
        "rans_decode": [(rans.int(), 40, 3), (rans.view(2, -1), 40, 3), (rans, -1, 3), (rans, 2**60, 3), (rans, 40, 9)],
    }
    for name, wrong in calls.items():
        for arguments in wrong:
            with pytest.raises(ValueError, match=f"{name}: "):
                getattr(ops, name)(*arguments)
            with pytest.raises((ValueError, RuntimeError), match=f"{name}: "):
                getattr(torch.ops.lqray, name)(*arguments)
    for bits, code in ((3, 9), (1, 2), (4, 16), (7, 255)):
        with pytest.raises(ValueError, match=f"a code is {code}; allowed with {bits} bits: 0 to {2**bits - 1}"):
            ops.rans_encode(torch.tensor([1, 0, code], dtype=torch.uint8), bits)
    for call in (lambda: ops.rans_encode(codes.to("meta"), 3), lambda: ops.rans_decode(rans.to("meta"), 40, 3)):
        with pytest.raises(ValueError, match="on the device meta"):
            call()


def test_opcheck():
    codes, planes = torch.zeros(40, dtype=torch.uint8), torch.zeros(24, dtype=torch.uint8)
    for name, arguments in {
        "pack": (codes, 3),
        "unpack": (planes, 40, 3),
        "rans_encode": (codes, 3),
        "rans_decode": (ops.rans_encode(codes, 3), 40, 3),
    }.items():
        torch.library.opcheck(getattr(torch.ops.lqray, name).default, arguments)


@NATIVE
@pytest.mark.skipif("LQRAY_CPU_ISA" in os.environ, reason="already inside the run for one instruction set")
@pytest.mark.parametrize("isa", [pytest.param("portable", marks=pytest.mark.slow), "avx2"])
def test_every_instruction_set_gives_the_same_bytes(isa):
    """These tests again, held back to a lesser machine."""
    if isa == ops.loaded.instruction_set:
        pytest.skip(f"{isa} is the best that this machine has: the tests above ran with it")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "fuzz"],
        env=os.environ | {"LQRAY_CPU_ISA": isa},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
