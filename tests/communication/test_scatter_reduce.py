"""scatter_reduce between real processes: bit-identical, unbiased, and as many bytes however many ranks."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.testing.exchanges import make_exchange, train_quantized
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes


def train_scattered(rank: int, method: str, rotate: bool) -> dict:
    extra = {"rotation": "hadamard", "tail": "full_precision"} if rotate else {}
    return train_quantized(rank, method, 25.0, False, "scatter_reduce", **extra)


@pytest.mark.parametrize(
    ("method", "world", "rotate"),
    [(m, 2, False) for m in ("terngrad", "nuqsgd", "optimal")]
    + [("alq", 1, False), ("qsgd_inf", 3, True), ("alq", 5, False)],
)
def test_scatter_reduce_keeps_replicas_bit_identical(method, world, rotate):
    ranks = run_ranks(train_scattered, world, method, rotate)
    first = ranks[0]
    for other in ranks:
        assert other["sums"] == first["sums"]
        assert other["levels"] == first["levels"]
        assert other["volume"].coordinates == first["volume"].coordinates
        assert other["volume"].bytes_sent > 0 or world == 1
    assert len(set(first["sums"])) == 50


def scattered_mean(rank: int, n: int, repeats: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Means over many exchanges of one gradient per rank, the exact mean, bytes sent and received by one exchange."""
    exchange = make_exchange(rank, "qsgd_inf", reduction="scatter_reduce")
    gradient = torch.randn(n, generator=torch.Generator().manual_seed(rank))
    exact = gradient.clone()
    dist.all_reduce(exact)
    decoded = []
    for step in range(repeats):
        exchange.begin_step(step)
        decoded.append(exchange.exchange([gradient], 0).wait().double())
    volume = exchange.volume
    world = dist.get_world_size()
    mean = (exact.double() / world).numpy()
    return torch.stack(decoded).numpy(), mean, volume.bytes_sent, volume.bytes_received


def test_scatter_reduce_is_unbiased():
    (decoded, exact, _, _), (other, *_) = run_ranks(scattered_mean, 2, 200, 2000)
    np.testing.assert_array_equal(decoded, other)
    bias = np.abs(decoded.mean(axis=0) - exact)
    assert np.all(bias <= 5.5 * decoded.std(axis=0, ddof=1) / 2000**0.5 + 1e-7)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 200, 1000])
@pytest.mark.parametrize("world", [3])
def test_scatter_reduce_of_any_size(n, world):
    ranks = run_ranks(scattered_mean, world, n, 3)
    for decoded, exact, *_ in ranks:
        np.testing.assert_array_equal(decoded, ranks[0][0])
        assert decoded.shape == (3, n)
        assert np.all(np.abs(decoded - exact) <= 3.0)


def test_bytes_of_scatter_reduce_stay_the_same_however_many_ranks():
    """2 (W - 1) / W payloads: codes of 3 bits on the way there, of 8 on the way back, a norm for every bucket of 64."""
    n = 64 * 32 * 8
    there, back = 4 * n // 64 + 3 * n // 8, 4 * n // 64 + n
    for world in (2, 4, 8):
        expected = (world - 1) * (there + back) // world + (world - 1) * 4
        for _, _, sent, received in run_ranks(scattered_mean, world, n, 1):
            assert sent == received == expected
