"""`lqray.attach`: a training script of one's own, which says nothing of steps, levels or resuming."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lqray
from lqray.communication import GradientExchange
from lqray.communication.checks.replicas import checksum
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.options.quantizer import QUANTIZER
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Quantizer
from tests.testing.exchanges import batch, network
from tests.testing.ranks import run_ranks

SMALL = {"bucket_size": 64, "update_at": (0, 3), "update_every": 4}
MANY_BUCKETS = 0.002


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def loss_of(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    images, labels = batch(rank, step)
    return nn.functional.cross_entropy(model(images), labels)


def by_hand(rank: int, cap: float, options: dict) -> tuple[list[int], list[float]]:
    """What a script that calls everything itself trains to: checksums after each step, and the last levels."""
    quantizer = Quantizer.create("alq", **SMALL)
    seeds = [derive_seed(0, "rounding", rank)]
    exchange = GradientExchange(quantizer, ExchangeOptions(**options), dist.group.WORLD, seeds)
    model = DistributedDataParallel(network(), bucket_cap_mb=cap)
    exchange.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sums = []
    for step in range(12):
        exchange.begin_step(step)
        optimizer.zero_grad()
        loss_of(model, rank, step).backward()
        exchange.update_levels()
        optimizer.step()
        sums.append(checksum(model))
    exchange.close()
    return sums, quantizer.levels.tolist()


def attached(rank: int, cap: float, options: dict) -> tuple[list[int], list[float]]:
    """The same of a script that forgets everything but `attach`."""
    model = DistributedDataParallel(network(), bucket_cap_mb=cap)
    exchange = lqray.attach(model, "alq", **SMALL, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sums = []
    for step in range(12):
        optimizer.zero_grad()
        loss_of(model, rank, step).backward()
        optimizer.step()
        sums.append(checksum(model))
    exchange.update_levels()
    assert exchange.steps == 12
    assert exchange.volume.payload_bytes > 0
    exchange.close()
    return sums, exchange.compressor.levels.tolist()


def both(rank: int, cap: float, options: dict):
    return by_hand(rank, cap, options), attached(rank, cap, options)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("cap", "options"),
    [
        (25.0, {}),
        (MANY_BUCKETS, {"skip": ["bias"], "error_feedback": "scaled"}),
        (MANY_BUCKETS, {"reduction": "scatter_reduce", "buckets": "layer"}),
        (25.0, {"entropy": "rans", "quantize_from": 3}),
    ],
)
def test_a_script_that_forgets_everything_trains_to_the_bits_of_one_that_does_not(cap, options):
    """Once, steps that were not begun all rounded with the noise of the first one."""
    ranks = run_ranks(both, 2, cap, options)
    for hand, alone in ranks:
        assert alone == hand
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0][1][0])) == 12


def run_of(rank: int, cap: float, stop: int | None, ddp: dict, options: dict):
    """(checksums, states) of a run with momentum, accumulation and dropout; interrupted and continued after `stop`."""

    def make():
        model = DistributedDataParallel(network(), bucket_cap_mb=cap, **ddp)
        exchange = lqray.attach(model, "alq", seed=5, **SMALL, **options)
        return model, exchange, torch.optim.Adam(model.parameters(), lr=0.01)

    model, exchange, optimizer = make()
    sums = []
    for step in range(10):
        if step == stop:
            saved = [model.module.state_dict(), optimizer.state_dict(), exchange.gather_state()]
            saved = [saved]
            dist.broadcast_object_list(saved)
            exchange.close()
            model, exchange, optimizer = make()
            if ddp.get("static_graph"):
                for _ in range(2):
                    loss_of(model, rank, 77).backward()
                    optimizer.zero_grad()
            parameters, moments, states = saved[0]
            exchange.load_state_dict(states)
            model.module.load_state_dict(parameters)
            optimizer.load_state_dict(moments)
        if step or not ddp.get("static_graph"):  # torch itself fails on no_sync in a static graph's first step
            with model.no_sync():
                loss_of(model, rank, 100 + step).backward()
        loss_of(model, rank, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        sums.append(checksum(model.module))
    exchange.close()
    return sums


def continued(rank: int, cap: float, ddp: dict, options: dict):
    stops = (3, 7) if ddp.get("static_graph") else (1, 4, 7)
    return run_of(rank, cap, None, ddp, options), [run_of(rank, cap, stop, ddp, options) for stop in stops]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ddp", "options"),
    [
        ({}, {}),
        ({}, {"reduction": "scatter_reduce", "error_feedback": "scaled", "feedback_stages": "both"}),
        ({}, {"error_feedback": "scaled", "skip": ["bias"]}),
        ({"gradient_as_bucket_view": True}, {"reduction": "scatter_reduce"}),
        ({"find_unused_parameters": True}, {}),
        ({"static_graph": True}, {}),
    ],
)
def test_a_continued_run_is_equal_to_the_bit(ddp, options):
    for whole, parts in run_ranks(continued, 2, MANY_BUCKETS, ddp, options):
        for part in parts:
            assert part == whole
        assert len(set(whole)) == 10


class Branches(nn.Module):
    """Leaves one of two layers out of each pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.left, self.right = nn.Linear(20, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor, left: bool) -> torch.Tensor:
        return (self.left if left else self.right)(self.body(images).relu())


def with_unused(rank: int) -> list[int]:
    model = DistributedDataParallel(Branches(), find_unused_parameters=True, bucket_cap_mb=MANY_BUCKETS)
    exchange = lqray.attach(model, "alq", **SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sums = []
    for step in range(8):
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images, left=(step + rank) % 3 > 0), labels).backward()
        optimizer.step()
        sums.append(checksum(model))
    exchange.close()
    return sums


@pytest.mark.processes
def test_parameters_may_be_left_out_of_a_step():
    first, second = run_ranks(with_unused, 2)
    assert first == second
    assert len(set(first)) == 8


def uneven(rank: int) -> int:
    """Rank 1 has fewer batches: torch's Join makes up for it."""
    model = DistributedDataParallel(network())
    exchange = lqray.attach(model, "alq", **SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with model.join():
        for step in range(6 - 2 * rank):
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            optimizer.step()
    exchange.close()
    return exchange.steps


@pytest.mark.processes
def test_ranks_may_have_different_numbers_of_batches_within_join():
    assert run_ranks(uneven, 2) == [6, 6]


def optimizers(parameters):
    parameters = list(parameters)
    yield torch.optim.SGD(parameters, lr=0.05)
    yield torch.optim.SGD(parameters, lr=0.05, fused=True)
    yield torch.optim.AdamW(parameters, lr=0.05, fused=True)
    yield torch.optim.AdamW(parameters, lr=0.05, foreach=True)


def alone(module: nn.Module | None = None, view: bool = False, method: str = "qsgd_inf", **options):
    model = DistributedDataParallel(module or nn.Linear(5, 3), gradient_as_bucket_view=view)
    return model, lqray.attach(model, method, bucket_size=64, **options)


def backward(model: nn.Module) -> None:
    model(torch.arange(10.0).view(2, 5)).square().sum().backward()


@pytest.mark.parametrize("view", [False, True])
def test_two_backward_passes_in_one_step_are_an_error_that_says_what_to_do(group, view):
    model, exchange = alone(view=view)
    for optimizer in optimizers(model.parameters()):
        for _ in range(2):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
    backward(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    with pytest.raises(RuntimeError, match=r"(?s)no_sync\(\).*sum.*zero_grad\(\)"):
        backward(model)
    assert exchange.steps == 9


def test_steps_that_keep_their_gradients_are_told_by_the_optimizer(group):
    """A script that never resets gradients accumulates over steps, as with DDP's own all-reduce."""
    model, exchange = alone()
    for optimizer in optimizers(model.parameters()):
        for _ in range(2):
            backward(model)
            optimizer.step()
    for _ in range(2):
        backward(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad  # no torch.optim.Optimizer
    assert exchange.steps == 10


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("view", [False, True])
def test_steps_without_the_optimizer_are_told_by_reset_gradients(group, to_none, view):
    """As of a GradScaler that skips a step, or of a script that looks at gradients one by one."""
    model, exchange = alone(view=view)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        backward(model)
        optimizer.zero_grad(set_to_none=to_none)
    loss = model(torch.ones(2, 5)).sum()  # the forward pass first, then the reset
    loss.backward()
    later = model(torch.ones(2, 5)).sum()
    optimizer.zero_grad(set_to_none=to_none)
    later.backward()
    assert exchange.steps == 5


def test_a_scaler_that_skips_steps(group):
    model, exchange = alone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = checksum(model)
    for step in range(4):
        optimizer.zero_grad(set_to_none=False)
        loss = model(torch.ones(2, 5) * (float("inf") if step in (1, 2) else 1.0)).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1.0
    assert exchange.steps == 4
    assert checksum(model) != before


def test_a_parameter_that_no_optimizer_has_disturbs_nothing(group):
    """Its gradient is never reset: DDP adds to it for ever, and nobody minds."""
    model, exchange = alone(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    optimizer = torch.optim.SGD(model.module[1].parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        backward(model)
    assert exchange.steps == 3


def test_accumulation_after_an_exchange_that_was_not_used_is_noticed_as_well(group):
    model, _ = alone()
    backward(model)
    with model.no_sync():
        backward(model)
    with pytest.raises(RuntimeError, match="no_sync"):
        backward(model)


def test_the_step_is_measured_on_request(group):
    model, exchange = alone()
    backward(model)
    assert exchange.nmse == 0
    model.zero_grad()
    exchange.measure_next_step()
    backward(model)
    assert 0 < exchange.nmse < 1
    model.zero_grad()
    backward(model)
    assert exchange.nmse == 0


def test_levels_are_fitted_once_however_they_are_asked_for(group):
    model, exchange = alone(method="alq", update_at=(0,), update_every=0)
    assert not exchange.update_levels()
    backward(model)
    assert exchange.update_levels()
    assert not exchange.update_levels()
    model.zero_grad()
    other, continued = alone(method="alq", update_at=(0,), update_every=0)
    continued.load_state_dict(exchange.state_dict())
    for each in (model, other):
        backward(each)
    assert exchange.compressor.updates == continued.compressor.updates == 1


def test_what_attach_refuses(group):
    model = DistributedDataParallel(nn.Linear(5, 3))
    with pytest.raises(TypeError, match=r"given a Linear.*DistributedDataParallel\(module\)"):
        lqray.attach(nn.Linear(5, 3), "alq")
    for options, message in [
        ({"method": "alqq"}, "unknown method 'alqq'.*did you mean 'alq'"),
        ({"method": "fp16"}, "fp16 is not a method whose payloads lqray sends; allowed: .*alq, .*register_comm_hook"),
        ({"bit": 3}, "unknown option 'bit'; allowed with alq: .*bits, .*reduction.*did you mean 'bits'"),
        ({"bits": 9}, "bits=9: Input should be less than or equal to 8"),
        ({"bits": "3"}, "bits='3': Input should be a valid integer"),
        ({"reduction": "ring"}, "reduction='ring': Value error, one of all_gather, hierarchical, scatter_reduce"),
        ({"skip": ["*.nothing"]}, "no parameter is called"),
        ({"bucket_cap_mb": 1.0}, "use DistributedDataParallel"),
        ({"every": 10}, "has no option every; use it in an experiment file"),
        ({"sampling": "fresh"}, "allowed: sampling='training'"),
    ]:
        with pytest.raises(ValueError, match=message):
            lqray.attach(model, **{"method": "alq"} | options)
    exchange = lqray.attach(model, "alq")
    with pytest.raises(RuntimeError, match="remove the call of begin_step"):
        exchange.begin_step(0)
    for state, message in [([{}, {}], "states of 2 ranks; allowed: 1"), ({"quantizer": {}}, "no count of steps")]:
        with pytest.raises(ValueError, match=message):
            exchange.load_state_dict(state)


def test_no_option_of_a_method_is_called_as_one_of_the_exchange():
    """attach takes both by their names."""
    of_methods = {name for options in QUANTIZER.values() for name in options.model_fields}
    assert not of_methods & {*ExchangeOptions.model_fields, "model", "seed", "group"}


def test_a_model_is_let_go_of_with_its_exchange(group):
    model, exchange = alone()
    backward(model)
    held = [weakref.ref(model), weakref.ref(exchange)]
    del model, exchange
    gc.collect()
    assert [one() for one in held] == [None, None]


def test_other_names_of_the_package_are_refused():
    with pytest.raises(AttributeError, match="no attribute .attache."):
        _ = lqray.attache
