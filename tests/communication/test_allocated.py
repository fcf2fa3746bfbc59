"""`allocated` with every `inner` through the exchange: both reductions, rounding together, layers and residuals."""

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

import lqray
from lqray.communication import GradientExchange
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.quantization import create
from tests.communication.test_rounding import N, gradient
from tests.testing.methods import REDUCTIONS, payload_bytes
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes
INNER = ("eden", "rounding", "dither", "slopes")
WORKERS = 4


def make(inner: str, here: int, bits: float, **options) -> GradientExchange:
    first = dist.get_rank() * here
    seeds = [derive_seed(1, "rounding", worker) for worker in range(first, first + here)]
    compressor = create("allocated", inner=inner, bits=bits)
    return GradientExchange(compressor, ExchangeOptions(**options), dist.group.WORLD, seeds)


def exchanged(inner: str, here: int, bits: float = 3, **options) -> dict:
    """The means of two steps, the squared error of the first, and bytes of a payload."""
    exchange = make(inner, here, bits, **options)
    found = []
    for step in range(2):
        exchange.begin_step(step)
        found.append(exchange.exchange([gradient()] * here, 0).wait())
    exchange.close()
    return {
        "means": [mean.numpy().tobytes() for mean in found],
        "error": float((found[0] - gradient()).double().square().mean()),
        "bytes": exchange.volume.payload_bytes,
    }


def everything(rank: int) -> dict:
    torch.set_num_threads(1)
    here = WORKERS // dist.get_world_size()
    found = {
        (inner, reduction, rounding): exchanged(inner, here, reduction=reduction, rounding=rounding)
        for inner in INNER
        for reduction in REDUCTIONS
        for rounding in ("independent", "correlated")
    }
    found["bytes"] = {inner: exchanged(inner, here, 2)["bytes"] for inner in INNER}
    found["fed back"] = {
        inner: exchanged(inner, here, error_feedback=True, reduction=reduction)["means"]
        for inner in INNER
        for reduction in REDUCTIONS
    }
    return found


def test_all_ranks_have_one_mean_however_many_workers_share_a_process():
    alone, *others = (run_ranks(everything, world) for world in (4, 2, 1))
    first = alone[0]
    for ranks in (alone, *others):
        for own in ranks:
            for key in first:
                if isinstance(key, tuple):
                    assert own[key]["means"] == first[key]["means"], key
                    assert own[key]["means"][0] != own[key]["means"][1], key
            assert own["fed back"] == first["fed back"]
    assert first["bytes"] == {inner: payload_bytes("allocated", N, inner) + 4 for inner in INNER}


def test_workers_that_agree_round_together():
    """Four with equal gradients. Phases of one stream make a dither's error a sixteenth of one worker's, and correlated
    rounding makes that of stochastic rounding less than half of what it is."""
    (found,) = run_ranks(everything, 1)
    error = {key: value["error"] for key, value in found.items() if isinstance(key, tuple)}
    (alone,) = run_ranks(of_one_worker, 1)
    assert error["dither", "all_gather", "independent"] == pytest.approx(alone / 16, rel=0.05)
    for reduction in REDUCTIONS:
        for inner in ("dither", "slopes", "eden"):  # which do not ask how to round
            assert error[inner, reduction, "correlated"] == error[inner, reduction, "independent"]
    assert error["rounding", "all_gather", "correlated"] < 0.5 * error["rounding", "all_gather", "independent"]


def of_one_worker(rank: int) -> float:
    return exchanged("dither", 1)["error"]


def collectives(rank: int) -> list[float]:
    found = []
    for inner in INNER:
        mean, share = gradient(), torch.empty(N // 2)
        chosen = {"bits": 4, "seed": 1, "inner": inner}
        lqray.quantized_all_reduce(mean, "allocated", **chosen)
        lqray.quantized_reduce_scatter(share, gradient(), "allocated", **chosen)
        own = gradient().view(2, -1)[rank]
        found += [float((mean - gradient()).norm() / gradient().norm()), float((share - own).norm() / own.norm())]
    return found


def test_collectives_take_it_too():
    assert all(error < 0.15 for found in run_ranks(collectives, 2) for error in found)


def by_layer(rank: int, inner: str) -> tuple[bytes, int, float]:
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)))
    exchange = make(inner, 1, 2.0, buckets="layer")
    exchange.attach(model)
    exchange.begin_step(0, measure=True)
    model(torch.randn(8, 20, generator=torch.Generator().manual_seed(rank))).square().mean().backward()
    exchange.close()
    flat = torch.cat([parameter.grad.view(-1) for parameter in model.parameters()])
    return flat.numpy().tobytes(), exchange.volume.payload_bytes, exchange.nmse


@pytest.mark.parametrize("inner", INNER)
def test_blocks_start_anew_at_every_layer(inner):
    first, second = run_ranks(by_layer, 2, inner)
    assert first[0] == second[0]
    assert first[1] == sum(payload_bytes("allocated", n, inner) for n in (600, 30, 90, 3)) + 4
    assert first[2] > 0


@pytest.mark.parametrize("inner", ["rounding", "dither", "slopes"])
def test_grids_are_not_fed_back_scaled(inner):
    """What is sent cannot be brought nearer: fed back, it would grow without an error."""
    trial = {
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 1, "batch_size": 8},
        "quantizer": {"method": "allocated", "inner": inner, "bits": 3.0},
        "exchange": {"error_feedback": "scaled"},
    }
    with pytest.raises(ValidationError, match="error_feedback: true or false, or quantizer.inner: eden"):
        Trial.model_validate(trial)
    assert not create("allocated", bits=3.0, inner=inner).can_be_scaled
    assert create("allocated", bits=3.0).can_be_scaled


@pytest.mark.parametrize("inner", ["rounding", "dither", "slopes"])
@pytest.mark.parametrize("n", [64, 128, 256, 1000])
def test_what_is_fed_back_of_short_tensors_stays_bounded(inner, n):
    """At two bits, which options allow: the head of a short tensor is not taken from its codes."""
    random = torch.Generator().manual_seed(n)
    quantizer = create("allocated", bits=2.0, inner=inner, exponent=1.0)
    residual = torch.zeros(n)
    for step in range(200):
        corrected = torch.randn(n, generator=random) + residual
        residual = corrected - quantizer.decode(quantizer.encode(corrected, seed=1, offset=step))
    assert float(residual.square().mean().sqrt()) < 20
