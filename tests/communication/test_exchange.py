"""Exchange of gradients between real processes."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import (
    GradientExchange,
)
from lqray.communication.checks.replicas import checksum
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Quantizer
from tests.testing.exchanges import batch, make_exchange, network, train_quantized
from tests.testing.methods import ADAPTIVE, EXCHANGED, payload_bytes
from tests.testing.ranks import run_ranks

METHODS = EXCHANGED


pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("method", "world", "cap"), [(m, 2, 25.0) for m in METHODS] + [("alq", 3, 0.0005)])
def test_replicas_stay_bit_identical_and_bytes_are_those_sent(method, world, cap):
    ranks = run_ranks(train_quantized, world, method, cap)
    first = ranks[0]
    for other in ranks:
        assert other["sums"] == first["sums"]
        assert other["levels"] == first["levels"]
        assert other["handed"] == other["counted"] > 0
    assert len(set(first["sums"])) == 50
    volume = first["volume"]
    n = sum(parameter.numel() for parameter in network().parameters())
    assert volume.coordinates == n
    if cap == 25.0:
        # 12 of 1,203 coordinates, and their indices in 11 bits each
        assert (
            volume.payload_bytes == {"random_k": 48, "topk": 48 + 12 + 3 * 2}.get(method, payload_bytes(method, n)) + 4
        )
    else:
        assert first["exchanges"] > 50
    assert volume.bytes_sent == volume.bytes_received == (world - 1) * volume.payload_bytes
    assert first["nmse"] > 0
    assert first["updates"] == ([0, 5, 15, 25, 35, 45] if method in ADAPTIVE else [])


def train_with_every_option(rank: int) -> dict:
    return train_quantized(rank, "alq", 25.0, by_layer=True, rotation="hadamard", tail="full_precision")


def test_layers_rotation_and_unquantized_tails_together():
    first, second = run_ranks(train_with_every_option, 2)
    assert first["sums"] == second["sums"]
    assert len(set(first["sums"])) == 50
    assert first["handed"] == first["counted"]
    layers = [parameter.numel() for parameter in network().parameters()]
    sizes = [4 * (n // 64) + 4 * 3 * 2 * (n // 64) + 4 * (n % 64) for n in layers]
    assert first["volume"].payload_bytes == sum(sizes) + 4
    assert first["nmse"] > 0


def test_every_tensor_of_every_step_has_an_offset_of_its_own(monkeypatch):
    """Many small DDP buckets, layer by layer: a repeated offset would repeat the random numbers."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        exchange = GradientExchange(Quantizer.create("qsgd"), ExchangeOptions(buckets="layer"), dist.group.WORLD, [1])
        seen = []

        class Bucket:
            def __init__(self, index, layers):
                flat = torch.zeros(layers)
                self.index, self.gradients = (lambda: index), (lambda: list(flat.split(1)))
                self.buffer, self.is_last = (lambda: flat), (lambda: False)
                parameters = [torch.zeros(1) for _ in range(layers)]
                exchange._names.update({parameter: str(number) for number, parameter in enumerate(parameters)})
                self.parameters = lambda: parameters

        def encode(tensor, *, seed, offset, original=exchange.compressor.encode):
            seen.append(offset)
            return original(tensor, seed=seed, offset=offset)

        monkeypatch.setattr(exchange.compressor, "encode", encode)
        for iteration in (0, 1, 2, 4096, 2**31):
            exchange.begin_step(iteration)
            for bucket in (0, 1, 255, 256, 257, 4096, 2**20 - 1):
                exchange.exchange_bucket(Bucket(bucket, 5)).wait()
        assert len(set(seen)) == len(seen) == 5 * 7 * 5
        assert max(seen) < 2**63
        exchange.begin_step(2**31 + 1)
        with pytest.raises(ValueError, match="bucket_cap_mb"):
            exchange.exchange_bucket(Bucket(0, 2049))
    finally:
        dist.destroy_process_group()


def in_a_subgroup(rank: int, reduction: str) -> list[int] | None:
    """Ranks 0 and 2 of three train together; rank 1 looks on."""
    group = dist.new_group([0, 2])
    if rank == 1:
        return None
    options = ExchangeOptions(reduction=reduction)
    quantizer = Quantizer.create("alq", bucket_size=64, update_at=(0, 3))
    exchange = GradientExchange(quantizer, options, group, [derive_seed(1, "rounding", rank)])
    model = DistributedDataParallel(network(), process_group=group)
    exchange.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sums = []
    for step in range(10):
        exchange.begin_step(step)
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        exchange.update_levels()
        optimizer.step()
        sums.append(checksum(model))
    return sums


@pytest.mark.parametrize("reduction", ["all_gather", "scatter_reduce"])
def test_groups_other_than_the_world(reduction):
    first, outside, second = run_ranks(in_a_subgroup, 3, reduction)
    assert outside is None
    assert first == second
    assert len(set(first)) == 10


def mean_of_many(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over 4000 exchanges of one gradient per rank, and the exact mean."""
    exchange = make_exchange(rank, "qsgd_inf")
    gradient = torch.randn(200, generator=torch.Generator().manual_seed(rank))
    exact = gradient.clone()
    dist.all_reduce(exact)
    decoded = []
    for step in range(4000):
        exchange.begin_step(step)
        decoded.append(exchange.exchange([gradient], 0).wait().double())
    return torch.stack(decoded).numpy(), (exact.double() / dist.get_world_size()).numpy()


def test_the_exchange_is_unbiased_and_errors_of_workers_are_independent():
    (decoded, exact), (other, _) = (tuple(map(torch.from_numpy, pair)) for pair in run_ranks(mean_of_many, 2))
    assert torch.equal(decoded, other)
    bias = (decoded.mean(dim=0) - exact).abs()
    assert torch.all(bias <= 5.5 * decoded.std(dim=0) / 4000**0.5 + 1e-7)
    # Error variance of the mean of two is half that of one: rounding errors of workers do not correlate.
    single = Quantizer.create("qsgd_inf", bucket_size=64)
    gradients = [torch.randn(200, generator=torch.Generator().manual_seed(rank)) for rank in range(2)]
    alone = 0.0
    for r, gradient in enumerate(gradients):
        rounded = [single.decode(single.encode(gradient, seed=9 + r, offset=step)) for step in range(2000)]
        alone += float(torch.stack(rounded).double().var(dim=0).sum())
    assert float(decoded.var(dim=0).sum()) == pytest.approx(alone / 4, rel=0.05)


def nan_gradient(rank: int) -> bool:
    exchange = make_exchange(rank, "alq", update_at=(0,))
    gradient = torch.ones(100)
    if rank == 1:
        gradient[3] = float("nan")
    exchange.begin_step(0)
    mean = exchange.exchange([gradient], 0).wait()
    exchange.update_levels()
    return bool(mean[:64].isnan().all() and mean[64:].isfinite().all())


def test_a_nan_on_one_rank_is_seen_by_all():
    assert run_ranks(nan_gradient, 2) == [True, True]
