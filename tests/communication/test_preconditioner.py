"""Gradients divided by the root of a second moment that all ranks share."""

import copy

import pytest
import torch
import torch.distributed as dist

import lqray
from lqray.communication import GradientExchange
from lqray.communication.moments import DecodedMoments, OptimizerMoments
from lqray.communication.preconditioner import Preconditioner
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer
from tests.testing.ranks import run_ranks

KEYS = [("a", 100), ("b", 30)]
CPU = torch.device("cpu")


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
    preconditioner = Preconditioner(DecodedMoments(decay=0.5), floor=0.3)
    assert preconditioner.scale(gradients(0), KEYS) is None
    moment = torch.zeros(130)
    for step in range(3):
        preconditioner.moments.keep(gradients(step), KEYS)
        moment = 0.5 * moment + 0.5 * gradients(step) ** 2
    root = (moment / (1 - 0.5**3)).sqrt()
    groups = torch.cat([part.square().mean().sqrt().expand_as(part) for part in root.split(64)])
    groups[128:] = (root[128:].square().sum() / 64).sqrt()  # the short group's mean is over 64, too
    expected = torch.maximum(root, 0.3 * torch.maximum(groups, 0.01 * root.square().mean().sqrt()))
    assert torch.allclose(preconditioner.scale(gradients(0), KEYS), expected, rtol=1e-5)


def test_its_state_is_all_of_it_and_what_is_not_finite_is_forgotten():
    one, other = DecodedMoments(0.95), DecodedMoments(0.95)
    one.keep(torch.cat([torch.tensor([float("nan"), float("inf")]), gradients(0)[2:]]), KEYS)
    assert one.of(KEYS, CPU).isfinite().all()
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.keep(gradients(1), KEYS)
    assert torch.equal(one.of(KEYS, CPU), other.of(KEYS, CPU))
    assert other.of([("a", 7)], CPU) is None  # another size: another tensor


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


def adam(**options) -> tuple[torch.nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.98), **options)


def test_moments_of_an_optimizer_are_its_own_over_what_they_began_with():
    """As DDP lays gradients out: the convolution's channels last."""
    model, optimizer = adam()
    moments = OptimizerMoments()
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments.follow(optimizer, names)
    keys = [(name, parameter.numel()) for parameter, name in names.items()]
    assert moments.of(keys, CPU) is None
    squares = {name: torch.zeros(size) for name, size in keys}
    for step in range(3):
        for number, (parameter, name) in enumerate(names.items()):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + number))
            parameter.grad = drawn.to(memory_format=torch.channels_last) if drawn.dim() == 4 else drawn
            flat = drawn.permute(0, 2, 3, 1).reshape(-1) if drawn.dim() == 4 else drawn.reshape(-1)
            squares[name] = 0.98 * squares[name] + 0.02 * flat.square()
        optimizer.step()
        moments.check()
    expected = torch.cat(list(squares.values())) / (1 - 0.98**3)
    assert torch.allclose(moments.of(keys, CPU), expected, rtol=1e-5)
    assert moments.of([("0.weight", 7)], CPU) is None
    assert moments.of([("other", 3)], CPU) is None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adamax])
def test_optimizers_without_second_moments_are_refused(kind):
    model, _ = adam()
    optimizer, moments = kind(model.parameters(), lr=0.01), OptimizerMoments()
    with pytest.raises(ValueError, match=f"{kind.__name__}.*allowed: an optimizer that keeps exp_avg_sq"):
        follow_and_step(model, optimizer, moments)


def follow_and_step(model, optimizer, moments):
    moments.follow(optimizer, {parameter: name for name, parameter in model.named_parameters()})
    model(torch.randn(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    moments.check()


def test_an_exchange_that_was_told_of_no_optimizer_says_so(group):
    options = ExchangeOptions(precondition="optimizer")
    exchange = GradientExchange(Quantizer.create("eden", bits=2, bucket_size=64), options, group, [1])
    with pytest.raises(RuntimeError, match="call exchange.follow"):
        exchange.begin_step(0)
    exchange.close()


def test_an_optimizer_before_any_parameter_is_known_is_refused(group):
    """Else nothing would ever be divided."""
    options = ExchangeOptions(precondition="optimizer")
    exchange = GradientExchange(Quantizer.create("eden", bits=2, bucket_size=64), options, group, [1])
    with pytest.raises(RuntimeError, match=r"follow comes after exchange\.attach"):
        exchange.follow(adam()[1])
    exchange.close()


def measured_step(**options) -> float:
    """NMSE of the step after Adam's first."""
    model, optimizer = adam()
    inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    model(inputs).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    exchange = lqray.attach(ddp, "eden", bits=2, bucket_size=64, **options)
    exchange.follow(optimizer)
    exchange.measure_next_step()
    ddp(inputs).square().sum().backward()
    exchange.close()
    return exchange.nmse


def test_a_step_that_sends_all_of_it_measures_what_would_be_sent(group):
    sent = measured_step(precondition="optimizer")
    assert measured_step(precondition="optimizer", quantize_from=5) == sent
    assert measured_step() != pytest.approx(sent, rel=0.01)


def under_adam(rank, start=None, divided=True):
    """Eight steps of a network whose gradients are divided by Adam's moments: its weights after each, and all that is
    to be restored after four."""
    torch.set_num_threads(1)
    model, optimizer = adam()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    chosen = {"bits": 2, "bucket_size": 64, "precondition": "optimizer" if divided else False}
    exchange = lqray.attach(ddp, "eden", **chosen)
    exchange.follow(optimizer)
    done, reached, middle = 0, [], None
    if start is not None:
        done, *states = start
        for part, state in zip((model, optimizer, exchange), states, strict=True):
            part.load_state_dict(state)
    for step in range(done, 8):
        if step == 4:
            states = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, exchange)]
            middle = step, *states
        optimizer.zero_grad()
        inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(100 * rank + step))
        loss = ddp(inputs.to(memory_format=torch.channels_last)).square().sum()
        loss.backward()
        optimizer.step()
        reached.append([part.tolist() for part in model.parameters()])
    exchange.close()
    return reached, middle


def both_under_adam(rank):
    reached, middle = under_adam(rank)
    return reached, under_adam(rank, start=middle)[0], under_adam(rank, divided=False)[0]


@pytest.mark.processes
def test_with_the_optimizers_moments_replicas_and_resumed_runs_are_equal_to_the_bit():
    found = run_ranks(both_under_adam, 2)
    assert found[0] == found[1]
    whole, resumed, plain = found[0]
    assert whole[4:] == resumed
    assert whole[0] == plain[0]  # nothing is known yet
    assert whole[1] != plain[1]
