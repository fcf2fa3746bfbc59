"""Every step has rounding noise of its own, levels come from one rank, and an error reaches whoever waits."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import GradientExchange, Volume, decide
from lqray.communication.baselines import Baseline
from lqray.communication.reductions.all_gather import AllGather
from lqray.communication.reductions.scatter_reduce import ScatterReduce, _owned
from lqray.communication.skipped import Bundle
from lqray.communication.wire.parcel import Parcel, encoded_parts, part_sizes
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.options.quantizer import PowerSgdOptions
from lqray.quantization import Quantizer
from tests.testing.ranks import run_ranks


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def exchange_of(group, method="qsgd_inf", **options) -> GradientExchange:
    return GradientExchange(Quantizer.create(method, bucket_size=64), ExchangeOptions(**options), group, [1])


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 5)).sum().backward()


@pytest.mark.parametrize("options", [{}, {"reduction": "scatter_reduce"}, {"skip": ["*"]}, {"quantize_from": 100}])
def test_a_training_loop_without_begin_step_is_refused(group, options):
    exchange = exchange_of(group, **options)
    model = DistributedDataParallel(nn.Linear(5, 3))
    exchange.attach(model)
    backward(model)
    with pytest.raises(RuntimeError, match=r"Add `exchange\.begin_step\(iteration\)` before the backward"):
        backward(model)
    exchange.close()


def test_a_tensor_of_a_step_is_exchanged_once(group):
    exchange = exchange_of(group)
    gradient = torch.randn(100)
    exchange.begin_step(3)
    exchange.exchange([gradient], 0).wait()
    exchange.exchange([gradient], 1).wait()
    with pytest.raises(RuntimeError, match="bucket 1 of iteration 3 is exchanged a second time"):
        exchange.exchange([gradient], 1)
    exchange.begin_step(4)
    exchange.exchange([gradient], 1).wait()


def test_accumulation_needs_no_more_steps_than_exchanges(group):
    exchange = exchange_of(group)
    model = DistributedDataParallel(nn.Linear(5, 3))
    exchange.attach(model)
    for step in range(3):
        exchange.begin_step(step)
        with model.no_sync():
            backward(model)
        backward(model)


@pytest.mark.parametrize("again", [0, 4, 5])
def test_an_iteration_is_not_begun_again_unless_its_state_is_restored(group, again):
    """An index that starts anew with every epoch repeats the noise of the first epoch."""
    exchange = exchange_of(group)
    state = exchange.state_dict()
    exchange.begin_step(5)
    exchange.begin_step(5)  # nothing was exchanged
    first = exchange.exchange([torch.arange(100.0)], 0).wait()
    with pytest.raises(ValueError, match=rf"begin_step\({again}\) after gradients of iteration 5 were exchanged"):
        exchange.begin_step(again)
    exchange.begin_step(6)
    exchange.load_state_dict(state)
    exchange.begin_step(5)
    assert torch.equal(exchange.exchange([torch.arange(100.0)], 0).wait(), first)


@pytest.mark.parametrize("iteration", [-1, 2**32])
def test_iterations_that_would_repeat_the_noise_of_others_are_refused(group, iteration):
    exchange = exchange_of(group)
    with pytest.raises(ValueError, match="allowed: iterations from 0 to 4294967295"):
        exchange.begin_step(iteration)
    with pytest.raises(ValueError, match="allowed: 0 to 1048575"):
        exchange.exchange([torch.ones(3)], 2**20)


def fitted(rank: int) -> tuple[list[int], float, list[float], int]:
    """How often each rank solved, and what it has of the fit, of gradients that differ from rank to rank."""
    exchange = GradientExchange(
        Quantizer.create("alq", bucket_size=64, update_at=(0, 2)), ExchangeOptions(), dist.group.WORLD, [rank]
    )
    solved, update = [], exchange.compressor.update_levels

    def counted(*arguments):
        solved.append(rank)
        return update(*arguments)

    exchange.compressor.update_levels = counted
    for step in range(3):
        exchange.begin_step(step)
        scale = torch.linspace(1, 1 + 5 * rank, 1000)
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(rank)) * scale
        exchange.exchange([gradient], 0).wait()
        exchange.update_levels()
    quantizer = exchange.compressor
    assert not len(quantizer.statistics_table())
    return solved, quantizer.expected_variance, quantizer.exact_levels.tolist(), quantizer.updates


@pytest.mark.processes
def test_one_rank_solves_and_all_have_what_it_found():
    first, second = run_ranks(fitted, 2)
    assert first[0] == [0, 0]
    assert second[0] == []
    assert first[1:] == second[1:]
    assert math.isfinite(first[1])
    assert first[3] == 2


class Broken(Exception):
    """An error that is no RuntimeError."""


def test_an_error_of_any_kind_reaches_those_that_wait_for_skipped_parameters(group, monkeypatch):
    volume, bundle = Volume(), Bundle(group, 1)
    waited = [bundle.add([torch.ones(3)], volume), bundle.add([torch.ones(4)], volume)]

    class Work:
        def get_future(self):
            done: Future = Future()
            done.set_exception(Broken("seen"))
            return done

    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: Work())
    bundle.start(volume)
    for future in waited:
        assert future.done()
        with pytest.raises(Broken, match="seen"):
            future.wait()


@pytest.mark.parametrize("reduction", ["all_gather", "scatter_reduce"])
@pytest.mark.parametrize("options", [{}, {"entropy": "rans"}, {"skip": ["bias"]}])
def test_an_error_of_any_kind_while_decoding_ends_the_backward_pass(group, monkeypatch, reduction, options):
    exchange = exchange_of(group, reduction=reduction, **options)
    model = DistributedDataParallel(nn.Linear(5, 3))
    exchange.attach(model)

    def fail(*_, **__):
        raise Broken("seen")

    monkeypatch.setattr(exchange._checks, "compare", fail)
    exchange.begin_step(0)
    with pytest.raises(RuntimeError, match="seen"):
        backward(model)
    exchange.close()


def parcel_of(tensors: int, n: int, parts: int = 1) -> Parcel:
    quantizer = Quantizer.create("qsgd_inf", bucket_size=512)
    x = torch.randn(n)
    payloads = [encoded_parts(x, parts, quantizer, seed=0, offset=number) for number in range(tensors)]
    return Parcel([[payload for of_tensor in payloads for payload in of_tensor]], [0], 0, parts)


@pytest.mark.parametrize(("n", "unit"), [(5000, 64), (5000, 8192), (1, 32), (0, 32), (64 * 64, 64), (2**20, 96)])
def test_parts_cover_a_tensor_in_whole_units(n, unit):
    sizes = part_sizes(n, 64, unit)
    assert len(sizes) == 64
    assert sum(sizes) == n
    last = max((part for part, size in enumerate(sizes) if size), default=0)
    assert all(size % unit == 0 for part, size in enumerate(sizes) if part != last)
    assert max(sizes) - min(sizes) <= 2 * unit


def test_every_payload_has_one_owner_and_workers_own_as_many():
    owned = _owned(parcel_of(100, 5000, parts=64), 64)
    assert sorted(number for numbers in owned for number in numbers) == list(range(6400))
    assert {len(numbers) for numbers in owned} == {100}
    whole = _owned(parcel_of(100, 5000), 64)
    assert sorted(number for numbers in whole for number in numbers) == list(range(100))
    # The last part of a tensor is where all of a small one is: it goes to another worker from tensor to tensor.
    last = {next(worker for worker, numbers in enumerate(owned) if 64 * t + 63 in numbers) for t in range(64)}
    assert len(last) == 64


def measured(rank: int) -> dict[str, tuple[list[str], dict[str, float]]]:
    """The reductions that were used to decide, and what was measured."""
    used: list[str] = []
    for cls in (AllGather, ScatterReduce):

        def reduce(self, *arguments, original=cls.reduce, name=cls.__name__):
            used.append(name)
            return original(self, *arguments)

        cls.reduce = reduce
    found = {}
    for reduction, entropy in (("all_gather", "none"), ("scatter_reduce", "none"), ("scatter_reduce", "rans")):
        options = ExchangeOptions(reduction=reduction, entropy=entropy)
        decision = decide(Quantizer.create("alq"), 10_000, dist.group.WORLD, torch.device("cpu"), options, 2)
        found[f"{reduction} {entropy}"] = sorted(set(used)), decision.metrics()
        used.clear()
    assert len(dist.distributed_c10d._world.pg_map) == 1
    return found


@pytest.mark.processes
def test_bypass_measures_the_reduction_that_would_be_used():
    first, second = run_ranks(measured, 2)
    assert first == second
    for key, (used, metrics) in first.items():
        assert used == [{"all_gather": "AllGather", "scatter_reduce": "ScatterReduce"}[key.split()[0]]]
        quantized = sum(metrics[f"bypass/{phase}_seconds"] for phase in ("encode", "decode", "exchange"))
        assert metrics["bypass/bypass"] == (quantized >= metrics["bypass/all_reduce_seconds"])


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 2)

    def forward(self, words):
        return self.linear(self.embedding(words).sum(1))


def test_an_embedding_with_sparse_gradients_is_named(group):
    for attached in (exchange_of(group), Baseline(PowerSgdOptions(method="powersgd"), group)):
        with pytest.raises(ValueError, match=r"embedding\.weight has sparse gradients.*sparse=False"):
            attached.attach(DistributedDataParallel(Words(sparse=True)))
    exchange = exchange_of(group)
    model = DistributedDataParallel(Words(sparse=False))
    exchange.attach(model)
    exchange.begin_step(0)
    model(torch.tensor([[1, 2]])).sum().backward()
    exchange.close()


def test_a_parameter_that_no_payload_holds_is_named(group):
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float64; allowed: float32"):
        exchange_of(group).attach(DistributedDataParallel(nn.Sequential(nn.Linear(3, 2).double())))
