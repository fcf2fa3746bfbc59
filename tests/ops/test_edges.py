"""What a planted fault in a kernel was not seen by: each backend against the reference."""

import pytest
import torch

from lqray import ops
from lqray.ops import reference
from tests.ops.test_backends import BACKENDS, data, same, some_levels


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("n", [700, 33])
def test_a_sum_that_is_added_to_is_rounded_after_its_scale(device, n):
    """Not once for both; and the scale is no power of two."""
    levels, add = some_levels(3), data(n, torch.float32, 9)
    rows = torch.stack(
        [reference.encode_fused(data(n, torch.float32, at), levels, 3, 64, "l2", at, 0) for at in (1, 2)]
    )
    expected = reference.decode_sum(rows, levels, n, 3, 64, 1 / 3, add)
    assert same(ops.decode_sum(rows.to(device), levels.to(device), n, 3, 64, 1 / 3, add.to(device)).cpu(), expected)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("block", [2, 32, 64, 512, 1024, 2048, 4096, 8192, 16384])
def test_hadamard_blocks_have_nothing_of_their_neighbours(device, block):
    x = data(3 * max(block, 8192), torch.float32, block)
    for inverse in (False, True):
        expected = reference.hadamard(x, block, 1, 2, inverse)
        assert same(ops.hadamard(x.to(device), block, 1, 2, inverse).cpu(), expected)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_statistics_of_short_and_long_buckets_of_zeros_are_zeros(device, norm):
    for column in ops.bucket_statistics(torch.zeros(300, device=device), 256, norm):
        assert column.cpu().tolist() == [0.0, 0.0]
