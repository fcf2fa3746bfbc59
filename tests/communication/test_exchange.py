"""Exchange of gradients between real processes."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import (
    GradientExchange,
    RanksDisagreeError,
    ReplicasDivergedError,
    check_replicas,
    full_precision_volume,
)
from lqray.communication.checks.replicas import checksum
from lqray.communication.reductions import all_gather as all_gather_module
from lqray.experiment import names
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.schema import Trial
from lqray.quantization import Quantizer
from lqray.quantization.methods import load_method
from lqray.training.loop import connect
from lqray.training.seeding import derive_seed
from tests.testing.ranks import run_ranks

METHODS = [name for name in names.methods() if load_method(name) is not None]
pytestmark = pytest.mark.processes


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 20, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def make_exchange(
    rank: int, method: str, by_layer: bool = False, reduction: str = "all_gather", **options
) -> GradientExchange:
    quantizer = Quantizer.create(method, bucket_size=64, **options)
    exchange = ExchangeOptions(reduction=reduction, buckets="layer" if by_layer else "network")
    return GradientExchange(quantizer, exchange, dist.group.WORLD, [derive_seed(1, "rounding", rank)])


def train_quantized(
    rank: int, method: str, bucket_cap_mb: float, by_layer: bool = False, reduction: str = "all_gather", **options
) -> dict:
    """50 quantized steps; what the collective was handed is counted where it is called."""
    handed = []
    original = all_gather_module.all_gather_into_tensor

    def counting(output, own, group):
        handed.append(own.numel() * own.element_size())
        return original(output, own, group)

    all_gather_module.all_gather_into_tensor = counting
    adaptive = {"update_at": (0, 5), "update_every": 10} if load_method(method).fit else {}
    exchange = make_exchange(rank, method, by_layer, reduction, **adaptive, **options)
    model = DistributedDataParallel(network(), bucket_cap_mb=bucket_cap_mb)
    exchange.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    counted, sums, updates = 0, [], []
    for step in range(50):
        exchange.begin_step(step, measure=step == 49)
        images, labels = batch(rank, step)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if exchange.update_levels():
            updates.append(step)
        optimizer.step()
        counted += exchange.volume.payload_bytes
        sums.append(checksum(model))
    check_replicas(model, dist.group.WORLD, torch.device("cpu"))
    return {
        "sums": sums,
        "handed": sum(handed),
        "counted": counted,
        "volume": exchange.volume,
        "levels": exchange.quantizer.levels.tolist(),
        "updates": updates,
        "nmse": exchange.nmse,
        "exchanges": len(handed),
    }


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
        assert volume.payload_bytes == 4 * -(-n // 64) + 4 * (2 if method == "terngrad" else 3) * -(-n // 32) + 4
    else:
        assert first["exchanges"] > 50
    assert volume.bytes_sent == volume.bytes_received == (world - 1) * volume.payload_bytes
    assert first["nmse"] > 0
    assert first["updates"] == ([0, 5, 15, 25, 35, 45] if load_method(method).fit else [])


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

        def encode(tensor, *, seed, offset, original=exchange.quantizer.encode):
            seen.append(offset)
            return original(tensor, seed=seed, offset=offset)

        monkeypatch.setattr(exchange.quantizer, "encode", encode)
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


def torchs_own(model: DistributedDataParallel, method: str) -> None:
    """What a PyTorch user would write."""
    if method == "fp16":
        model.register_comm_hook(dist.group.WORLD, default_hooks.fp16_compress_hook)
    elif method == "bf16":
        # By its own name DDP lets it run over NCCL only, though gloo can carry it.
        model.register_comm_hook(
            dist.group.WORLD, lambda group, bucket: default_hooks.bf16_compress_hook(group, bucket)
        )
    elif method == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            dist.group.WORLD, matrix_approximation_rank=2, start_powerSGD_iter=5, random_seed=0
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def two_ways(rank: int, method: str) -> tuple[list[int], list[int], list[float]]:
    """Checksums of a model trained by lqray's `method` and by torch over 20 steps; bits per coordinate of the steps."""
    options = {"rank": 2, "start_iteration": 5} if method == "powersgd" else {}
    trial = Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "cnn"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"iterations": 1, "batch_size": 1},
            "workers": 3,
            "quantizer": {"method": method, **options},
        }
    )
    with connect(trial, network(), dist.group.WORLD) as wires:
        ours, baseline = wires.model, wires.baseline
        assert wires.exchange is None
    assert (baseline is None) == (method == "full_precision")
    theirs = DistributedDataParallel(network())
    torchs_own(theirs, method)
    sums, bits = [], []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sums.append([])
        for step in range(20):
            images, labels = batch(rank, step)
            optimizer.zero_grad()
            if baseline:
                baseline.begin_step()
            nn.functional.cross_entropy(model(images), labels).backward()
            if baseline and model is ours:
                bits.append(baseline.volume.bits_per_coordinate)
            optimizer.step()
            sums[-1].append(checksum(model.module))
    return sums[0], sums[1], bits


@pytest.mark.parametrize("method", ["full_precision", "fp16", "bf16", "powersgd"])
def test_full_precision_and_baselines_are_torchs_bit_for_bit(method):
    ranks = run_ranks(two_ways, 3, method)
    for ours, theirs, bits in ranks:
        assert ours == theirs
        assert ours == ranks[0][0]
        if method in ("fp16", "bf16"):
            assert bits == [16.0] * 20
        if method == "powersgd":
            # Rank 2 of 50 x 20; 3 x 50, which would not shrink by half, and two biases as they are: 1,203 coordinates.
            assert bits[:5] == [32.0] * 5
            assert bits[-1] == pytest.approx(32 * (2 * (50 + 20) + 3 * 50 + 50 + 3) / 1203)


def disagree(rank: int, what: str) -> str:
    options = {"method": "alq", "bits": 3, "bucket_size": 64}
    exchange = {}
    if rank == 2:
        options |= {"bits": {"bits": 2}, "bucket size": {"bucket_size": 128}, "method": {"method": "amq"}}.get(what, {})
        exchange |= {"reduction": "scatter_reduce"} if what == "reduction" else {}
    quantizer = Quantizer.create(**options)
    if what == "levels" and rank == 2:
        quantizer.set_levels(np.linspace(-1, 1, 8))
    seed = 7 if what == "seed" else derive_seed(1, "rounding", rank)
    made = GradientExchange(quantizer, ExchangeOptions(**exchange), dist.group.WORLD, [seed])
    try:
        made.attach(DistributedDataParallel(network()))
    except RanksDisagreeError as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize("what", ["bits", "bucket size", "method", "levels", "reduction", "seed", "nothing"])
def test_ranks_that_would_misread_each_other_never_start(what):
    for message in run_ranks(disagree, 3, what):
        if what == "nothing":
            assert message == "agreed"
        elif what == "seed":
            assert "ranks 0, 1, 2" in message
        else:
            assert "rank 2" in message


def diverge(rank: int) -> str:
    model = network()
    if rank == 1:
        with torch.no_grad():
            model[0].weight[0, 0] += 1e-7
    try:
        check_replicas(model, dist.group.WORLD, torch.device("cpu"))
    except ReplicasDivergedError as error:
        return str(error)
    return "not noticed"


def test_replicas_that_differ_in_a_bit_are_an_error():
    for message in run_ranks(diverge, 2):
        assert "rank 0:" in message
        assert "rank 1:" in message


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


def test_full_precision_volume():
    model = network()
    n = sum(parameter.numel() for parameter in model.parameters())
    volume = full_precision_volume(model, 4)
    assert (volume.coordinates, volume.payload_bytes, volume.bytes_sent) == (n, 4 * n, 6 * n)
    assert volume.bits_per_coordinate == 32
    assert full_precision_volume(model, 0).bits_per_coordinate == 0
    half = copy.deepcopy(model).half()
    assert full_precision_volume(half, 2).payload_bytes == 2 * n
