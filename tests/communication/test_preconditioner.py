"""Gradients divided by the root of a second moment that all ranks share."""

import pytest
import torch
import torch.distributed as dist

from lqray.communication import GradientExchange
from lqray.communication.preconditioner import Preconditioner
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer
from tests.testing.ranks import run_ranks

KEYS = [("a", 100), ("b", 30)]


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def gradients(step: int) -> torch.Tensor:
    drawn = torch.randn(130, generator=torch.Generator().manual_seed(step))
    return drawn * torch.linspace(-3, 3, 130).exp()


def test_scales_are_roots_of_second_moments_within_their_floors():
    preconditioner = Preconditioner(decay=0.5, floor=0.3)
    assert preconditioner.scale(gradients(0), KEYS) is None
    moment = torch.zeros(130)
    for step in range(3):
        preconditioner.keep(gradients(step), KEYS)
        moment = 0.5 * moment + 0.5 * gradients(step) ** 2
    root = (moment / (1 - 0.5**3)).sqrt()
    groups = torch.cat([part.square().mean().sqrt().expand_as(part) for part in root.split(64)])
    groups[128:] = (root[128:].square().sum() / 64).sqrt()  # the short group's mean is over 64, too
    expected = torch.maximum(root, 0.3 * torch.maximum(groups, 0.01 * root.square().mean().sqrt()))
    assert torch.allclose(preconditioner.scale(gradients(0), KEYS), expected, rtol=1e-5)


def test_its_state_is_all_of_it_and_what_is_not_finite_is_forgotten():
    one, other = Preconditioner(), Preconditioner()
    one.keep(torch.cat([torch.tensor([float("nan"), float("inf")]), gradients(0)[2:]]), KEYS)
    assert one.scale(gradients(0), KEYS).isfinite().all()
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.keep(gradients(1), KEYS)
    assert torch.equal(one.scale(gradients(2), KEYS), other.scale(gradients(2), KEYS))
    assert other.scale(torch.zeros(7), [("a", 7)]) is None  # another size: another tensor


def exchange_of(group, seeds, method="eden", reduction="all_gather", **options) -> GradientExchange:
    quantizer = Quantizer.create(method, bits=2, bucket_size=64)
    return GradientExchange(quantizer, ExchangeOptions(reduction=reduction, precondition=True, **options), group, seeds)


def test_quiet_coordinates_come_back_better_and_loud_ones_worse(group):
    """The same scales at every step: what is lost in the quiet half of a block falls by as much as the scales say."""

    def lost(precondition):
        quantizer = Quantizer.create("eden", bits=2, bucket_size=64)
        options = ExchangeOptions(precondition=precondition, precondition_floor=0.0)
        exchange = GradientExchange(quantizer, options, group, [5])
        errors = torch.zeros(2)
        for step in range(60):
            exchange.begin_step(step)
            gradient = torch.randn(64, generator=torch.Generator().manual_seed(step))
            gradient[32:] *= 0.1
            decoded = exchange.exchange([gradient], 0).wait()
            if step >= 20:
                errors += (decoded - gradient).square().view(2, 32).sum(dim=1)
        exchange.close()
        return errors

    plain, divided = lost(False), lost(True)
    assert divided[1] < 0.1 * plain[1]
    assert divided[0] > plain[0]


def descend(rank, reduction, method, feedback, workers_here=1, start=None):
    """Twelve steps down a bowl, each worker beside its own noise: where every step arrived, and the state after six."""
    torch.set_num_threads(1)
    workers = range(rank * workers_here, (rank + 1) * workers_here)
    seeds = [100 + worker for worker in workers]
    exchange = exchange_of(dist.group.WORLD, seeds, method, reduction, error_feedback=feedback)
    step, point = 0, gradients(99)
    if start is not None:
        step, point, state = start
        exchange.load_state_dict(state)
    reached, middle = [], None
    while step < 12:
        if step == 6:
            middle = step, point.clone(), exchange.state_dict()
        exchange.begin_step(step)
        own = [0.2 * point + gradients(1000 * worker + step) for worker in workers]
        point = point - exchange.exchange(own, 0).wait()
        reached.append(point.tolist())
        step += 1
    exchange.close()
    return reached, middle


def both(rank, reduction, method, feedback):
    reached, middle = descend(rank, reduction, method, feedback)
    return reached, descend(rank, reduction, method, feedback, start=middle)[0]


def apart(rank):
    return descend(rank, "all_gather", "eden", False)[0]


@pytest.mark.processes
@pytest.mark.parametrize("reduction", ["all_gather", "scatter_reduce"])
@pytest.mark.parametrize(("method", "feedback"), [("eden", False), ("allocated", True)])
def test_replicas_and_resumed_runs_are_equal_to_the_bit(reduction, method, feedback):
    found = run_ranks(both, 2, reduction, method, feedback)
    assert found[0] == found[1]
    whole, resumed = found[0]
    assert whole[6:] == resumed


@pytest.mark.processes
def test_workers_that_share_a_process_get_the_same(group):
    assert descend(0, "all_gather", "eden", False, workers_here=2)[0] == run_ranks(apart, 2)[0]


def test_gradients_of_16_bits_stay_so(group):
    exchange = exchange_of(group, [1])
    for step in range(3):
        exchange.begin_step(step)
        decoded = exchange.exchange([gradients(step).to(torch.bfloat16)], 0).wait()
        assert decoded.dtype == torch.bfloat16
        assert decoded.isfinite().all()
    exchange.close()


def test_extra_gradients_are_divided_alike(group):
    """What `rounded` gives stands for the gradient itself, whatever it is divided by."""
    exchange = exchange_of(group, [1])
    for step in range(3):
        exchange.begin_step(step)
        exchange.exchange([gradients(step)], 0).wait()
    gradient = {"0": gradients(7)}  # its last block has two coordinates, of which EDEN is biased: left out below
    drawn = [exchange.rounded(gradient, seed=seed, offset=seed) for seed in range(600)]
    error = (torch.stack(drawn).mean(dim=0) - gradients(7))[:128]
    assert float(error.norm() / gradients(7)[:128].norm()) < 0.05
    assert torch.equal(exchange.quantized_part(gradient), gradients(7))
    exchange.close()
