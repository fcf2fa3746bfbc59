"""Quantized collectives on any tensor."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

import lqray
from lqray.communication import LevelsDifferError
from lqray.quantization import Quantizer
from tests.testing.methods import EXCHANGED
from tests.testing.ranks import run_ranks

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(), (1,), (7, 33), (3, 5, 64), (0, 4)]


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def of_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """As run_ranks, for results with tensors, whose memory goes with the process that made them."""
    return [pickle.loads(result) for result in run_ranks(pickled, world, function, *arguments)]


def pickled(rank: int, function: Callable[..., Any], *arguments: Any) -> bytes:
    return pickle.dumps(function(rank, *arguments))


def tensor_of(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def collectives(rank: int) -> dict:
    """{what: (result, exact mean)} of every shape, type and way; of reduce-scatters this rank's part."""
    world, found = dist.get_world_size(), {}
    kept = Quantizer.create("alq", bits=8, bucket_size=32)
    for shape, dtype in [(shape, dtype) for shape in SHAPES for dtype in DTYPES]:
        exact = torch.stack([tensor_of(other, shape, dtype).double() for other in range(world)]).mean(dim=0)
        for reduction in ("all_gather", "scatter_reduce"):
            own = tensor_of(rank, shape, dtype)
            lqray.quantized_all_reduce(own, "qsgd_inf", bits=8, bucket_size=32, reduction=reduction)
            found[f"{reduction} {shape} {dtype}"] = own.double(), exact
        own = tensor_of(rank, shape, dtype)
        pending = lqray.quantized_all_reduce(own, kept, op="sum", async_op=True)
        assert torch.equal(own, tensor_of(rank, shape, dtype))
        assert not pending.is_completed()
        pending.wait()
        pending.wait()
        assert pending.is_completed()
        found[f"sum {shape} {dtype}"] = own.double() / world, exact

        whole = (world, *shape)
        exact = torch.stack([tensor_of(other, whole, dtype).double() for other in range(world)]).mean(dim=0)
        part = torch.full(shape, torch.nan, dtype=dtype)
        pending = lqray.quantized_reduce_scatter(part, tensor_of(rank, whole, dtype), kept, async_op=True)
        pending.wait()
        found[f"part {shape} {dtype}"] = part.double(), exact[rank]
    return found


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_every_shape_type_and_way_on_every_number_of_ranks(world):
    ranks = of_ranks(collectives, world)
    for key in ranks[0]:
        for found in ranks:
            result, exact = found[key]
            assert result.shape == exact.shape, key
            assert (result - exact).abs().sum() <= 0.03 * (1 + exact.abs()).sum(), key
            if not key.startswith("part"):
                assert torch.equal(result, ranks[0][key][0]), key


def repeated(rank: int, reduction: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean of many calls and their deviation, beside the exact mean."""
    own, quantizer = tensor_of(rank, (200,), torch.float32), Quantizer.create("qsgd_inf", bits=3, bucket_size=64)
    results = []
    for _ in range(1000):
        whole, part = own.clone(), torch.empty(100)
        lqray.quantized_all_reduce(whole, quantizer, reduction=reduction)
        lqray.quantized_reduce_scatter(part, own, quantizer, op=dist.ReduceOp.SUM)
        results.append(torch.cat([whole, part / 2]).double())
    exact = own.double()
    dist.all_reduce(exact)
    exact = torch.cat([exact, exact.view(2, 100)[rank]]) / 2
    return torch.stack(results).mean(dim=0), torch.stack(results).std(dim=0), exact


@pytest.mark.processes
@pytest.mark.parametrize("reduction", ["all_gather", "scatter_reduce"])
def test_calls_are_unbiased_without_a_seed_since_they_are_counted(reduction):
    for mean, deviation, exact in of_ranks(repeated, 2, reduction):
        assert torch.all(deviation[:100] > 0)
        assert torch.all((mean - exact).abs() <= 5.5 * deviation / 1000**0.5 + 1e-6)


def with_strides_and_seeds(rank: int) -> dict:
    base = tensor_of(rank, (40, 30), torch.float32)
    ways = {}
    for name, seed in [("first", 3), ("again", 3), ("other", 4)]:
        own = base.clone()
        lqray.quantized_all_reduce(own, "qsgd_inf", bits=2, seed=seed)
        ways[name] = own
    transposed = base.clone().t()
    lqray.quantized_all_reduce(transposed, "qsgd_inf", bits=8, bucket_size=8)
    ways["transposed"] = transposed
    wide = torch.zeros(40, 60)
    wide[:, ::2] = base
    lqray.quantized_all_reduce(wide[:, ::2], "qsgd_inf", bits=8, bucket_size=8)
    ways["every other"] = wide
    weight = torch.nn.Parameter(base.clone())
    lqray.quantized_all_reduce(weight, "qsgd_inf", bits=2, seed=3)
    ways["parameter"] = weight.detach()
    return ways


@pytest.mark.processes
def test_strides_seeds_and_parameters():
    first, second = of_ranks(with_strides_and_seeds, 2)
    for name, result in first.items():
        assert torch.equal(result, second[name])
    assert torch.equal(first["first"], first["again"])
    assert torch.equal(first["first"], first["parameter"])
    assert not torch.equal(first["first"], first["other"])
    exact = (tensor_of(0, (40, 30), torch.float32) + tensor_of(1, (40, 30), torch.float32)) / 2
    torch.testing.assert_close(first["transposed"].t(), exact, atol=0.03, rtol=0)
    torch.testing.assert_close(first["every other"][:, ::2], exact, atol=0.03, rtol=0)
    assert not first["every other"][:, 1::2].any()


def levels_and_bytes(rank: int) -> dict:
    gradient = tensor_of(rank, (4096,), torch.float32)
    quantizer, error = Quantizer.create("alq", bits=3, bucket_size=512), []
    updates = []
    for fit in (None, None, True):
        own = gradient.clone()
        pending = lqray.quantized_all_reduce(own, quantizer, async_op=True, fit=fit)
        pending.wait()
        updates.append(quantizer.updates)
        error.append(float((own - (tensor_of(0, (4096,), own.dtype) + tensor_of(1, (4096,), own.dtype)) / 2).norm()))
    unfitted = gradient.clone()
    lqray.quantized_all_reduce(unfitted, "alq", bits=3, bucket_size=512, fit=False)
    spread = lqray.quantized_reduce_scatter(torch.empty(2048), gradient, quantizer, async_op=True)
    spread.wait()
    return {
        "levels": quantizer.levels.tolist(),
        "updates": updates,
        "error": error,
        "unfitted": float(
            (unfitted - (tensor_of(0, (4096,), own.dtype) + tensor_of(1, (4096,), own.dtype)) / 2).norm()
        ),
        "volumes": (pending.volume, spread.volume),
    }


@pytest.mark.processes
def test_levels_are_kept_in_a_quantizer_and_bytes_are_counted():
    first, second = of_ranks(levels_and_bytes, 2)
    assert first["levels"] == second["levels"]
    assert first["updates"] == [1, 1, 2]
    assert max(first["error"]) < 0.7 * first["unfitted"]
    whole, spread = first["volumes"]
    assert whole.bytes_sent == whole.payload_bytes == 4 * 8 + 4096 * 3 // 8 + 4
    assert spread.bytes_sent == 4 * 4 + 2048 * 3 // 8 + 4
    assert spread.payload_bytes == 2 * spread.bytes_sent


def of_every_method(rank: int) -> dict:
    own, found = tensor_of(rank, (3, 500), torch.float32), {}
    for method in EXCHANGED:
        for reduction in ("all_gather", "scatter_reduce"):
            whole, part = own.clone(), torch.empty(750)
            lqray.quantized_all_reduce(whole, method, reduction=reduction)
            lqray.quantized_reduce_scatter(part, own, method)
            found[f"{method} {reduction}"] = whole, part
    return found


@pytest.mark.processes
def test_every_method_is_sent_by_both_collectives():
    first, second = of_ranks(of_every_method, 2)
    exact = (tensor_of(0, (3, 500), torch.float32) + tensor_of(1, (3, 500), torch.float32)) / 2
    for key, (whole, part) in first.items():
        assert torch.equal(whole, second[key][0]), key
        for result in (whole, torch.cat([part, second[key][1]]).view(3, 500)):
            assert float((result * exact).sum()) > 0, key  # unbiased or not, it points the same way


def differing(rank: int, what: str) -> str:
    quantizer = Quantizer.create("alq", bucket_size=64)
    if what == "levels" and rank == 1:
        quantizer.observe(torch.randn(640, generator=torch.Generator().manual_seed(0)))
        quantizer.update_levels()
    with pytest.raises(LevelsDifferError) as seen:
        if what == "levels":
            lqray.quantized_all_reduce(torch.ones(100), quantizer, fit=False, reduction="scatter_reduce")
        else:
            from lqray.communication import functional

            functional._calls[dist.group.WORLD] = rank
            lqray.quantized_reduce_scatter(torch.ones(50), torch.ones(100), quantizer, fit=False)
    return str(seen.value)


@pytest.mark.processes
@pytest.mark.parametrize("what", ["levels", "calls"])
def test_ranks_whose_levels_or_calls_differ_are_told(what):
    for message in of_ranks(differing, 2, what):
        assert "different levels or of different steps" in message


def in_a_subgroup(rank: int):
    group = dist.new_group([0, 2])
    own = torch.full((10,), float(rank))
    if rank == 1:
        with pytest.raises(ValueError, match="this rank is not of the group"):
            lqray.quantized_all_reduce(own, "qsgd_inf", group=group)
    else:
        lqray.quantized_all_reduce(own, "qsgd_inf", group=group)
    return own


@pytest.mark.processes
def test_other_groups_than_the_world():
    first, outside, second = of_ranks(in_a_subgroup, 3)
    assert torch.equal(first, second)
    assert torch.equal(outside, torch.ones(10))
    assert first.unique().tolist() == [1.0]


def test_what_is_refused_names_what_is_allowed(group):
    tensor, part = torch.ones(8), torch.empty(3)
    quantizer = Quantizer.create("alq")
    for call, message in [
        (lambda: lqray.quantized_all_reduce(tensor.double(), "alq"), "float64.*allowed: dense ones of float32"),
        (lambda: lqray.quantized_all_reduce(tensor.to_sparse(), "alq"), "torch.sparse_coo; allowed: dense"),
        (lambda: lqray.quantized_all_reduce(tensor, "alq", op="max"), "op='max'; allowed: 'mean', 'sum'"),
        (lambda: lqray.quantized_all_reduce(tensor, "alq", entropy="rans"), "unknown option 'entropy'"),
        (lambda: lqray.quantized_all_reduce(tensor, quantizer, bits=3), "bits beside a quantizer"),
        (lambda: lqray.quantized_all_reduce(tensor, "powersgd"), "not a method whose payloads"),
        (lambda: lqray.quantized_reduce_scatter(part, tensor, "alq"), "output has 3 coordinates.*1 times"),
        (lambda: lqray.quantized_reduce_scatter(tensor.half(), tensor, "alq"), "same dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in [
        (lambda: lqray.quantized_all_reduce([1.0], "alq"), "given a list; allowed: a torch.Tensor"),
        (lambda: lqray.quantized_all_reduce(tensor, 3), "method is a int"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()


def test_without_a_process_group_it_says_so():
    with pytest.raises(ValueError, match="init_process_group"):
        lqray.quantized_all_reduce(torch.ones(3), "alq")
