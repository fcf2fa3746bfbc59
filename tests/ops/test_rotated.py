"""Rotation and encoding at once, and one after the other: each backend against the reference, byte for byte."""

import pytest
import torch

from lqray import ops
from lqray.ops import reference
from tests.ops.test_backends import BACKENDS, DTYPES, data, same, some_levels

ROTATION = 2**64 - 5
# Those whose coordinates stay in one place between the two, those that are too short for it, and one that is too long.
BUCKETS = [1, 2, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]


def check(device: str, x: torch.Tensor, bits: int, bucket: int, norm: str, levels: torch.Tensor | None = None) -> None:
    levels = some_levels(bits, bucket % 5) if levels is None else levels
    chosen = (bits, bucket, norm, 2**63 + bits, bucket + 7, ROTATION)
    found = ops.encode_rotated(x.to(device), levels.to(device), *chosen)
    assert same(found, reference.encode_rotated(x, levels, *chosen))


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_last_bucket_is_padded(device, bucket, norm):
    """By nothing, by all but one coordinate, by a few groups, of every dtype."""
    for bits, n in enumerate((0, 1, bucket - 1, bucket, 2 * bucket + 1, 3 * bucket - bucket // 3), start=1):
        check(device, data(n, DTYPES[bits % 3], n), bits, bucket, norm)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rotated_buckets_whose_norms_want_memory_of_their_own(device, norm):
    """Longer ones than a block holds: sums of chunks lie beside what was rotated, not in it."""
    check(device, data(33_000, torch.bfloat16), 3, 32_768, norm)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("bucket", [64, 256, 2048, 8192])
def test_rotated_spans_of_several_blocks(device, bits, bucket):
    """More than a CUDA block works on at a time, from the first to the last round of a grid."""
    norm, dtype = ("l2", "linf")[bits % 2], DTYPES[bits % 3]
    check(device, data(27_011, dtype, bits), bits, bucket, norm)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("bucket", [64, 128, 512, 1024, 4096, 8192])
def test_rotated_buckets_some_of_which_need_their_scale(device, bucket):
    scales = [1.0, 0.0, 1e-30, 1.0, 1e-42, 4.4e17, 1e19, 1e30, 3e38, float("nan"), float("inf"), 1e-9, 1e-19]
    rows = torch.stack([data(bucket, torch.float32, at) * scale for at, scale in enumerate(scales)])
    x = torch.cat([rows.reshape(-1).repeat(1 + 9_000 // rows.numel()), data(bucket // 2 + 1, torch.float32, 1, 1e-30)])
    for bits, norm in ((3, "l2"), (3, "linf"), (5, "l2")):
        check(device, x, bits, bucket, norm)


@pytest.mark.parametrize("device", BACKENDS)
def test_rotated_views_and_numbers_of_levels(device):
    """A view that begins where no four coordinates do, and fewer levels than codes."""
    x = data(3001, torch.float32).to(device)
    levels = torch.tensor([-1.0, -0.1, 0.0, 0.3, 1.0])
    for begin in (1, 2, 3):
        chosen = (3, 512, "l2", 1, 2, ROTATION)
        expected = reference.encode_rotated(x[begin:].cpu(), levels, *chosen)
        assert same(ops.encode_rotated(x[begin:], levels.to(device), *chosen), expected)
    strided = torch.ops.lqray.encode_rotated(x[::2], levels.to(device), 3, 512, "l2", 1, 2, 3)
    assert same(strided, reference.encode_rotated(x[::2].cpu(), levels, 3, 512, "l2", 1, 2, 3))


@pytest.mark.parametrize("device", BACKENDS)
def test_only_buckets_of_a_power_of_two_are_rotated(device):
    x, levels = torch.ones(64, device=device), torch.linspace(-1, 1, 8, device=device)
    with pytest.raises(ValueError, match="encode_rotated: bucket_size is 48; allowed: a power of two"):
        ops.encode_rotated(x, levels, 3, 48, "l2", 1, 2, 3)
    for bucket, norm, bits in ((48, "l2", 3), (0, "l2", 3), (32, "l1", 3), (32, "l2", 9)):
        with pytest.raises(RuntimeError):
            torch.ops.lqray.encode_rotated(x, levels, bits, bucket, norm, 1, 2, 3)


def test_encode_rotated_is_hadamard_and_encode_fused():
    x, levels = data(700, torch.bfloat16), some_levels(3)
    padded = torch.nn.functional.pad(x.float(), (0, 768 - 700))
    apart = ops.encode_fused(ops.hadamard(padded, 256, 5, 2), levels, 3, 256, "l2", 1, 2)
    assert torch.equal(ops.encode_rotated(x, levels, 3, 256, "l2", 1, 2, 5), apart)
