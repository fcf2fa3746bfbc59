"""torch's own post-local SGD as a method: what a PyTorch user writes, and what lqray's local steps come to."""

import math

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from lqray.communication.checks.replicas import checksum
from lqray.experiment.options.resources import Resources
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.orchestration.launchers.placement import PlacementError, processes_of
from lqray.training import loop
from lqray.training.batches import Batches
from lqray.training.dataset import load_dataset
from lqray.training.estimate import estimate
from lqray.training.models import build_model
from lqray.training.nonfinite import DivergedError
from lqray.training.worker import run_worker
from tests.testing.poisoned import Poisoned
from tests.testing.ranks import run_ranks

COORDINATES = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10


def trial(every: int | None = 4, start: int = 0, exchange: dict | None = None, **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [32, 16]},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"iterations": 14, "batch_size": 8, "evaluate_every": 100},
        "quantizer": {"method": "post_local_sgd", "start_iteration": start},
        "exchange": {"every": every} | (exchange or {}),
        "telemetry": {"every": 3},
        "workers": 2,
    }
    return Trial.model_validate(config | changes)


def trained(rank: int, config: dict) -> tuple[dict[str, float], list[int], list]:
    """Final metrics, the checksum of the shared network after each step, its last parameters."""
    sums: list[int] = []
    last: list = []

    def after_step(stepped) -> None:
        sums.append(checksum(stepped.network))
        last[:] = [one.tolist() for one in stepped.network.parameters()]

    chosen = Trial.model_validate(config)
    return run_worker(chosen, lambda report: None, torch.device("cpu"), 1, after_step=after_step), sums, last


def by_torch(rank: int, config: dict, start: int) -> tuple[list, list]:
    """Parameters that a PyTorch user's script comes to, who averages every 4 steps, and those of lqray."""
    chosen = Trial.model_validate(config)
    dataset = load_dataset(chosen.data)
    torch.manual_seed(derive_seed(chosen.seed, "model"))
    network = DistributedDataParallel(build_model(chosen.model, dataset.shape, dataset.classes))
    state = PostLocalSGDState(dist.group.WORLD, None, start, post_local_gradient_allreduce=False)
    network.register_comm_hook(state, post_localSGD_hook)
    batches = Batches(dataset.train_examples, chosen.schedule.batch_size, chosen.workers, chosen.seed)
    inner = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    optimizer = PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=4, warmup_steps=start + 3))
    for iteration in range(chosen.schedule.iterations):
        inputs, labels = dataset.train_batch(batches.indices(iteration, rank), 0)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return [one.tolist() for one in network.parameters()], trained(rank, config)[2]


@pytest.mark.processes
@pytest.mark.parametrize(("start", "iterations"), [(0, 12), (5, 13), (6, 6)])
def test_it_is_what_torch_comes_to(start, iterations):
    """To the bit; without averages, where all steps are of the warm-up."""
    config = trial(4, start, schedule={"iterations": iterations, "batch_size": 8}).config()
    for theirs, ours in run_ranks(by_torch, 2, config, start):
        assert theirs == ours


@pytest.mark.processes
def test_local_steps_whose_mean_of_parameters_is_taken_are_the_same():
    """To the bit after each step, with momentum, BatchNorm and dropout, and an average after the last of 14 steps."""
    model = {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2}
    outer = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}
    ours = trial(4, exchange={"outer": outer}, model=model, quantizer={"method": "full_precision"})
    theirs = trial(4, model=model)
    for expected, found in zip(*(run_ranks(trained, 2, one.config()) for one in (ours, theirs)), strict=True):
        assert found[1] == expected[1]
        assert len(set(found[1])) == 5  # at the beginning, and after steps 4, 8, 12 and 14
        for key in ("test/loss", "wire/total_bytes_sent", "wire/bits_per_coordinate"):
            assert found[0][key] == expected[0][key]


@pytest.mark.processes
def test_bytes_are_those_of_gradients_first_and_then_of_parameters():
    """Three steps of the warm-up, averages after steps 7, 11 and 14; in float32 by a ring of two."""
    final, sums, _ = run_ranks(trained, 2, trial(4, 3).config())[0]
    assert final["wire/total_bytes_sent"] == 6 * 4 * COORDINATES
    assert final["wire/bytes_sent"] == pytest.approx(6 * 4 * COORDINATES / 14)
    assert final["wire/bits_per_coordinate"] == pytest.approx(32 * 6 / 14, rel=1e-4)
    assert len(set(sums)) == 6
    expected = estimate(trial(4, 3), 2).bytes_per_step
    assert expected == pytest.approx((3 + 11 / 4) * 4 * COORDINATES / 14)


def poisoned(rank: int, config: dict, number: int) -> str | tuple[dict[str, float], list[int], list]:
    """What comes of a run in which rank 0 sees a NaN in its batch of this number."""
    before, dataset = loop.load_dataset, load_dataset(Trial.model_validate(config).data)
    loop.load_dataset = lambda options: Poisoned(dataset, -1 if rank else number)
    try:
        return trained(rank, config)
    except DivergedError as error:
        return str(error)
    finally:
        loop.load_dataset = before


@pytest.mark.processes
@pytest.mark.parametrize(("number", "start", "at"), [(5, 0, 7), (1, 3, 1)])
def test_what_is_not_finite_ends_all_ranks_alike(number, start, at):
    found = run_ranks(poisoned, 2, trial(4, start, telemetry={"every": 0}).config(), number)
    assert found[0] == found[1]
    assert f"is not finite at iteration {at}; try a smaller lr" in found[0]


@pytest.mark.processes
@pytest.mark.parametrize(("number", "skipped"), [(6, 1), (8, 1), (2, 2)])
def test_a_step_that_is_not_finite_is_left_out(number, skipped):
    """By its worker alone, also at the step of an average; in the warm-up, where the mean is not finite, by all."""
    schedule = {"iterations": 14, "batch_size": 8, "evaluate_every": 100, "on_nonfinite": "skip"}
    (first, sums, _), (_, others, _) = run_ranks(poisoned, 2, trial(4, 4, schedule=schedule).config(), number)
    assert first["train/skipped_steps"] == skipped
    assert math.isfinite(first["test/loss"])
    assert sums == others


@pytest.mark.parametrize(
    ("every", "exchange", "changes", "key"),
    [
        (None, {}, {}, "exchange.every"),
        (4, {"outer": {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}}, {}, "exchange.outer"),
        (4, {"fragments": 2}, {}, "exchange.fragments"),
        (4, {"overlap": 2}, {}, "exchange.overlap"),
        (4, {"mixing": 0.5}, {}, "exchange.mixing"),
        (4, {"find_unused_parameters": True}, {}, "exchange.find_unused_parameters"),
        (4, {}, {"model": {"name": "mlp", "layers": [8], "dtype": "bf16"}}, "model.dtype"),
        (4, {}, {"telemetry": {"samples": 2}}, "telemetry.samples"),
    ],
)
def test_what_torch_has_no_use_for_is_refused(every, exchange, changes, key):
    with pytest.raises(ValidationError) as error:
        trial(every, exchange=exchange, **changes)
    assert error.value.errors()[0]["ctx"]["key"] == key


def test_its_parameters_say_what_it_heeds():
    found = trial(4, 3).params()
    assert found["exchange.every"] == "4"
    assert found["quantizer.start_iteration"] == "3"
    assert not any(key.startswith("exchange.outer") for key in found)
    assert Trial.model_validate(trial(4, 3).config()).id == trial(4, 3).id


def test_workers_do_not_share_processes():
    assert processes_of(trial(), Resources(processes=2)) == 2
    with pytest.raises(
        PlacementError, match=r"post_local_sgd, by which torch averages what processes hold; allowed: 2"
    ):
        processes_of(trial(), Resources(processes=1))
    with pytest.raises(ValueError, match="2 workers, the process group 1 ranks; allowed: a rank for each worker"):
        run_worker(trial(), lambda report: None, torch.device("cpu"), 1)
