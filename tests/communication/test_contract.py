"""What every reduction holds with every method, on 1 to 4 processes, whoever shares a process with whom."""

import os
import signal
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import GradientExchange, LevelsDifferError, RankLostError, decide, naming_lost_ranks
from lqray.communication.bucket import skipped_names
from lqray.communication.checks.replicas import checksum
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Compressor, Quantizer
from tests.testing.copies import CONTEXT
from tests.testing.methods import ADAPTIVE, EXCHANGED, REDUCTIONS, SPARSE, payload_bytes
from tests.testing.ranks import run_ranks

METHODS = EXCHANGED
STEPS = 30
EXCHANGES = 300
pytestmark = pytest.mark.processes


def network(**others) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.LayerNorm(50), nn.ReLU(), nn.Linear(50, 3)).to(**others)


def batch(worker: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * worker + step)
    return torch.randn(8, 20, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def compressor_of(method: str, bucket_size: int = 64, **options) -> Compressor:
    sparse = {"density": 0.25} if method in SPARSE else {}
    return Quantizer.create(method, bucket_size=bucket_size, **sparse, **options)


def make(method: str, workers: range, bucket_size: int = 64, group=None, **options) -> GradientExchange:
    adaptive = {"update_at": (0, 5), "update_every": 10} if method in ADAPTIVE else {}
    seeds = [derive_seed(1, "rounding", worker) for worker in workers]
    return GradientExchange(
        compressor_of(method, bucket_size, **adaptive), ExchangeOptions(**options), group or dist.group.WORLD, seeds
    )


def train(rank: int, method: str, workers_here: int = 1, steps: int = STEPS, dtype=torch.float32, **options) -> dict:
    """Checksums after every step, last volume, levels and weights; `mean`: of the last step's gradients, exact."""
    workers = range(rank * workers_here, (rank + 1) * workers_here)
    exchange = make(method, workers, **options)
    model = DistributedDataParallel(network(dtype=dtype), bucket_cap_mb=0.003)
    exchange.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sums = []
    for step in range(steps):
        exchange.begin_step(step, measure=step == steps - 1)
        optimizer.zero_grad()
        for worker in workers:
            images, labels = batch(worker, step)
            if worker == workers[-1]:
                nn.functional.cross_entropy(model(images.to(dtype)), labels).backward()
            else:
                with model.no_sync():
                    nn.functional.cross_entropy(model(images.to(dtype)), labels).backward()
                exchange.set_aside()
        exchange.update_levels()
        optimizer.step()
        sums.append(checksum(model.module))
    exchange.close()
    return {
        "sums": sums,
        "volume": (exchange.volume.coordinates, exchange.volume.payload_bytes, exchange.volume.bytes_sent),
        "levels": exchange.compressor.fingerprint().hex(),
        "nmse": exchange.nmse,
        "residuals": {key: value.numpy() for key, value in exchange.state_dict()["residuals"].items()},
        "finite": all(bool(p.isfinite().all()) for p in model.parameters()),
    }


def contract(rank: int) -> dict:
    """Every reduction with every method, and the mean of the decoded beside the exact one."""
    torch.set_num_threads(1)
    found = {}
    for reduction in REDUCTIONS:
        for method in METHODS:
            found[reduction, method] = train(rank, method, reduction=reduction) | means(rank, method, reduction)
    return found


def means(rank: int, method: str, reduction: str, **options) -> dict:
    """One gradient of each rank, exchanged `EXCHANGES` times, or twice where its mean is not the exact one: mean and
    deviation of what arrives, and the exact one."""
    exchange = make(method, range(rank, rank + 1), reduction=reduction, **options)
    gradient = torch.randn(200, generator=torch.Generator().manual_seed(rank))
    exact = gradient.clone()
    dist.all_reduce(exact)
    arrived = []
    for step in range(EXCHANGES if compressor_of(method).unbiased else 2):
        exchange.begin_step(step)
        arrived.append(exchange.exchange([gradient], 0).wait().double())
    exchange.close()
    arrived = torch.stack(arrived)
    volume = exchange.volume
    return {
        "mean": arrived.mean(dim=0).numpy(),
        "deviation": arrived.std(dim=0).numpy(),
        "exact": (exact.double() / dist.get_world_size()).numpy(),
        "bytes": (volume.payload_bytes, volume.bytes_sent, volume.bytes_received),
    }


def is_unbiased(found: dict) -> bool:
    """Of what `means` found, by Bernstein's bound: a coordinate beside a level is rounded away from it too rarely to be
    near normal."""
    allowed = 5.5 * found["deviation"] / EXCHANGES**0.5 + 12 / EXCHANGES * found["deviation"].max() + 1e-6
    return bool(np.all(np.abs(found["mean"] - found["exact"]) <= allowed))


def part_bytes(method: str, n: int) -> int:
    """Of n coordinates, in buckets of 64, or a quarter of them."""
    k = min(n, max(1, round(n / 4)))
    if method == "topk":  # a bit for each coordinate is less than indices of 3 bits and more
        return 4 * k + (-(-n // 8) if k < n else 0)
    return 4 * k if method == "random_k" else payload_bytes(method, n)


def predicted_bytes(method: str, reduction: str, world: int, rank: int) -> tuple[int, int]:
    """(handed over, sent) for 200 coordinates, which end with a short bucket and a short word."""
    if reduction == "all_gather":
        payload = part_bytes(method, 200)
        return payload + 4, (world - 1) * (payload + 4)
    plain = method in (*SPARSE, "mxfp4", "mxfp8")  # without buckets of a size to choose
    unit = 32 if plain else 64
    edges = [min(200, unit * (-(-200 // unit) * part // world)) for part in range(world + 1)]
    sizes = [end - begin for begin, end in zip(edges, edges[1:], strict=False)]
    shares = [part_bytes(method, n) for n in sizes]
    norms = 8192 if plain else 64
    means = shares if method == "random_k" else [4 * -(-n // norms) + 4 * 8 * -(-n // 32) for n in sizes]
    row = max(means) + 4
    return sum(shares) + row, sum(shares) - shares[rank] + (world - 1) * row


@pytest.mark.parametrize("world", [1, 2, *(pytest.param(world, marks=pytest.mark.slow) for world in (3, 4))])
def test_contract_of_every_reduction_and_method(world):
    ranks = run_ranks(contract, world)
    for (reduction, method), first in ranks[0].items():
        what = f"{reduction}, {method}, {world} processes"
        assert len(set(first["sums"])) == STEPS, what
        for rank, others in enumerate(ranks):
            own = others[reduction, method]
            assert own["sums"] == first["sums"], what
            assert own["levels"] == first["levels"], what
            np.testing.assert_array_equal(own["mean"], first["mean"], what)
            handed, sent = predicted_bytes(method, reduction, world, rank)
            assert own["bytes"][:2] == (handed, sent), what
        if not compressor_of(method).unbiased:
            continue
        assert is_unbiased(first), what


def shared_processes(rank: int, workers: int) -> dict:
    torch.set_num_threads(1)
    here = workers // dist.get_world_size()
    return {
        (reduction, method): train(rank, method, here, steps=12, reduction=reduction)
        for reduction in REDUCTIONS
        for method in METHODS
    }


def test_workers_that_share_processes_train_to_the_same_bits():
    alone, pairs, together = (run_ranks(shared_processes, world, 4)[0] for world in (4, 2, 1))
    for key, expected in alone.items():
        for found in (pairs, together):
            assert found[key]["sums"] == expected["sums"], key
            assert found[key]["levels"] == expected["levels"], key


OPTIONS = {
    "skip": {"skip": ["bias", "norm"]},
    "skip by pattern and size": {"skip": ["3.*"], "skip_below": 60},
    "skip all": {"skip": ["*"]},
    "error feedback": {"error_feedback": True},
    "error feedback by layer": {"error_feedback": True, "buckets": "layer", "skip": ["bias"]},
    "entropy": {"entropy": "rans"},
    "entropy by layer": {"entropy": "rans", "buckets": "layer", "skip": ["norm"]},
}


def with_options(rank: int) -> dict:
    torch.set_num_threads(1)
    found = {
        (name, reduction): train(rank, "alq", steps=8, reduction=reduction, **options)
        for name, options in OPTIONS.items()
        for reduction in REDUCTIONS
    }
    found["plain", "all_gather"] = train(rank, "alq", steps=8)
    found["plain", "scatter_reduce"] = train(rank, "alq", steps=8, reduction="scatter_reduce")
    for dtype in (torch.float16, torch.bfloat16):
        for reduction in REDUCTIONS:
            found[str(dtype), reduction] = train(rank, "qsgd_inf", steps=8, dtype=dtype, reduction=reduction)
    return found


def test_options_of_the_exchange():
    first, second = run_ranks(with_options, 2)
    sizes = {"0.weight": 1000, "0.bias": 50, "1.weight": 50, "1.bias": 50, "3.weight": 150, "3.bias": 3}
    for key, found in first.items():
        assert found["sums"] == second[key]["sums"], key
        assert len(set(found["sums"])) == 8, key
        assert found["finite"], key
        assert found["volume"][0] == sum(sizes.values()), key
    for reduction in REDUCTIONS:
        assert first["entropy", reduction]["sums"] == first["plain", reduction]["sums"]  # other bytes, same gradients
        assert first["skip all", reduction]["volume"] == (1303, 4 * 1303, 4 * 1303)
        assert first["skip all", reduction]["sums"] == first["skip all", "all_gather"]["sums"]
        skipped, plain = first["skip", reduction]["volume"][1], first["plain", reduction]["volume"][1]
        assert skipped > plain
        assert first["error feedback", reduction]["sums"] != first["plain", reduction]["sums"]
        held = first["error feedback", reduction]["residuals"]
        assert {key: value.size for key, value in held.items()} == {f"0/{name}": n for name, n in sizes.items()}
        by_layer = first["error feedback by layer", reduction]["residuals"]
        assert set(by_layer) == {"0/0.weight", "0/1.weight", "0/3.weight"}


def test_a_pattern_that_skips_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no parameter is called 'bais'; allowed: bias, norm.*0\.weight, 0\.bias"):
        skipped_names(network(), ExchangeOptions(skip=("bias", "bais")))
    assert skipped_names(nn.Linear(3, 3), ExchangeOptions(skip=("norm",))) == set()


def feeding_back(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """One gradient 200 times with error feedback: the sum of what arrived, and 200 times the exact mean."""
    exchange = make("qsgd_inf", range(rank, rank + 1), error_feedback=True)
    gradient = torch.randn(200, generator=torch.Generator().manual_seed(rank))
    total = torch.zeros(200)
    for step in range(200):
        exchange.begin_step(step)
        total += exchange.exchange([gradient], 0).wait()
    exact = gradient.clone()
    dist.all_reduce(exact)
    return total.numpy(), (100 * exact).numpy()


def test_error_feedback_keeps_the_sum_of_gradients():
    """What is lost at a step comes later: the sums differ by the last residuals alone, not by 200 steps' errors."""
    (total, exact), (other, _) = run_ranks(feeding_back, 2)
    np.testing.assert_array_equal(total, other)
    assert np.abs(total - exact).max() < 2.0


def accumulating(rank: int) -> list[int]:
    """Two minibatches by DDP's no_sync, and a model that does not use all its parameters."""
    torch.set_num_threads(1)

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.used, self.unused = nn.Linear(20, 3), nn.Linear(7, 7)

        def forward(self, x):
            return self.used(x)

    exchange = make("alq", range(rank, rank + 1))
    model = DistributedDataParallel(Partly(), find_unused_parameters=True)
    exchange.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sums = []
    for step in range(6):
        exchange.begin_step(step)
        optimizer.zero_grad()
        images, labels = batch(rank, 2 * step)
        with model.no_sync():
            nn.functional.cross_entropy(model(images), labels).backward()
        first = model.module.used.weight.grad.clone()
        images, labels = batch(rank, 2 * step + 1)
        nn.functional.cross_entropy(model(images), labels).backward()
        assert not torch.equal(first, model.module.used.weight.grad)
        exchange.update_levels()
        optimizer.step()
        sums.append(checksum(model.module))
    return sums


def test_gradient_accumulation_and_unused_parameters():
    first, second = run_ranks(accumulating, 2)
    assert first == second
    assert len(set(first)) == 6


def other_levels(rank: int, reduction: str, **options) -> str:
    """Rank 1 gets other levels after training has begun."""
    exchange = make("qsgd_inf", range(rank, rank + 1), reduction=reduction, **options)
    model = DistributedDataParallel(network())
    exchange.attach(model)
    for step in range(4):
        if step == 2 and rank == 1:
            exchange.compressor.set_levels(np.array([-1, -0.5, -0.25, -0.1, 0.1, 0.25, 0.5, 1.0]))
        exchange.begin_step(step)
        images, labels = batch(rank, step)
        try:
            nn.functional.cross_entropy(model(images), labels).backward()
        except RuntimeError as error:
            return f"step {step}: {error}"
    return "not noticed"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_levels_that_differ_are_noticed_in_the_step(reduction):
    for message in run_ranks(other_levels, 3, reduction):
        assert message.startswith("step 2")
        assert LevelsDifferError.__name__ in message
        assert "rank 1 of 3" in message


def killed(rank: int, reduction: str, victim: int) -> str:
    """A rank ends without a word in the middle of a step."""
    by_hosts = {"hosts": 2} if reduction == "hierarchical" else {}
    exchange = make("qsgd_inf", range(rank, rank + 1), reduction=reduction, **by_hosts)
    model = DistributedDataParallel(network())
    exchange.attach(model)
    try:
        with naming_lost_ranks(dist.group.WORLD):
            for step in range(1000):
                if step == 5 and rank == victim:
                    os.kill(os.getpid(), signal.SIGKILL)
                exchange.begin_step(step)
                images, labels = batch(rank, step)
                nn.functional.cross_entropy(model(images), labels).backward()
    except RankLostError as error:
        return str(error)
    return "not noticed"


def survivors(reduction: str, world: int, victim: int) -> tuple[dict[int, str], float]:
    """What the others say, and seconds until the last has said it."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=survivor, args=(rank, world, port, queue, reduction, victim)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    processes[victim].join(120)
    started = time.monotonic()
    found = dict(queue.get(timeout=60) for _ in range(world - 1))
    took = time.monotonic() - started
    for process in processes:
        process.join(30)
    return found, took


def survivor(rank, world, port, queue, reduction, victim):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo")
    said = killed(rank, reduction, victim)
    queue.put((rank, said))
    queue.close()
    queue.join_thread()
    time.sleep(2)
    os._exit(0)


@pytest.mark.parametrize(
    ("reduction", "victim"), [("all_gather", 2), ("scatter_reduce", 1), ("all_gather", 0), ("hierarchical", 1)]
)
def test_a_killed_rank_is_named(reduction, victim):
    found, took = survivors(reduction, 4, victim)
    assert set(found) == set(range(4)) - {victim}
    for message in found.values():
        assert f"rank {victim}" in message
    assert took < 45


def bypassing(rank: int) -> tuple[bool, dict]:
    decision = decide(Quantizer.create("alq"), 10_000, dist.group.WORLD, torch.device("cpu"))
    return decision.bypass, decision.metrics()


def test_bypass_measures_and_decides_alike_on_all_ranks():
    first, second = run_ranks(bypassing, 2)
    assert first == second
    metrics = first[1]
    quantized = sum(metrics[f"bypass/{phase}_seconds"] for phase in ("encode", "decode", "exchange"))
    assert all(value > 0 for name, value in metrics.items() if name.endswith("seconds"))
    assert first[0] == (quantized >= metrics["bypass/all_reduce_seconds"])


def coded(rank: int, reduction: str) -> tuple[float, float, float, int]:
    """Bits per coordinate on the wire, coded and not, the entropy of the codes, and a checksum of the means."""
    wires = []
    for entropy in ("rans", "none"):
        exchange = make("alq", range(rank, rank + 1), 8192, reduction=reduction, entropy=entropy)
        exchange.begin_step(0, measure=True)
        gradient = torch.randn(400_000, generator=torch.Generator().manual_seed(rank))
        mean = exchange.exchange([gradient], 0).wait()
        wires.append((exchange.volume.bits_per_coordinate, exchange.entropy_bits, float(mean.double().square().sum())))
        exchange.close()
    assert wires[0][2] == wires[1][2]
    return wires[0][0], wires[1][0], wires[0][1], hash(wires[0][2])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_entropy_coding_on_the_wire_is_near_the_entropy(reduction):
    first, second = run_ranks(coded, 2, reduction)
    assert first[3] == second[3]
    for on_wire, fixed, entropy, _ in (first, second):
        assert on_wire < fixed - 0.3
        if reduction == "all_gather":
            assert on_wire <= entropy + 0.05
