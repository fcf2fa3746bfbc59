"""What is lost beside the second moment of the gradient."""

import math

import pytest
import torch
import torch.distributed as dist

from lqray.communication import GradientExchange
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import create


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def gradients(step: int) -> torch.Tensor:
    drawn = torch.randn(300, generator=torch.Generator().manual_seed(step))
    return drawn * torch.linspace(-3, 3, 300).exp()


def measured(group, decay, state=None, first=0, **options):
    """(exchange, by hand, as it says) of the last of four steps, and its state before that."""
    exchange = GradientExchange(create("eden", bits=2, bucket_size=64), ExchangeOptions(**options), group, [5])
    if decay is not None:
        exchange.keep_moments(decay)
    if state is not None:
        exchange.load_state_dict(state)
    v, kept = torch.zeros(300, dtype=torch.float64), None
    for step in range(first, 4):
        kept = exchange.state_dict() if step == 3 else None
        exchange.begin_step(step, measure=step == 3)
        mean = exchange.exchange([gradients(step)], 0).wait()
        v = v if decay is None else decay * v + (1 - decay) * mean.double().square()
    exchange.close()
    root = (v / (1 - (decay or 0) ** 4)).sqrt()
    root = torch.maximum(root, 0.01 * root.square().mean().sqrt()) + 1e-8
    lost = mean.double() - gradients(3).double()
    by_hand = float((lost / root).square().sum() / (gradients(3).double() / root).square().sum())
    return exchange, by_hand, exchange.moment_nmse, kept


@pytest.mark.parametrize("precondition", [False, True])
def test_the_error_of_one_worker_is_weighed_as_adam_would(group, precondition):
    exchange, by_hand, found, _ = measured(group, 0.9, precondition=precondition)
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert precondition or abs(found / exchange.nmse - 1) > 0.05


def test_it_goes_on_from_a_state_with_the_same_number(group):
    _, _, found, state = measured(group, 0.9)
    assert measured(group, 0.9, state=state, first=3)[2] == found
    del state["moments"]  # as before there were any
    assert math.isfinite(measured(group, 0.9, state=state, first=3)[2])


def test_without_being_asked_for_nothing_is_kept(group):
    exchange, _, found, state = measured(group, None)
    assert found is None
    assert "moments" not in state
    assert exchange.nmse > 0
