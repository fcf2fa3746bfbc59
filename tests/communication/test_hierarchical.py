"""Exact inside a host, compressed between hosts: bits, bytes, errors, and who is blamed."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lqray
from lqray.communication import GradientExchange, decide
from lqray.communication.checks.replicas import checksum
from lqray.communication.wire import placement
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer
from tests.communication.test_contract import batch, is_unbiased, make, means, network, other_levels, part_bytes, train
from tests.testing.methods import EXCHANGED
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes

WORKERS = 4
HOSTS = {"reduction": "hierarchical", "hosts": 2}
OPTIONS = {
    "a host for each worker": {"hosts": 4},
    "bf16": {"within": "bf16"},
    "bf16, a host for each worker": {"within": "bf16", "hosts": 4},
    "error feedback": {"error_feedback": True},
    "scaled, by layer": {"error_feedback": "scaled", "buckets": "layer"},
    "preconditioned": {"precondition": True},
    "correlated": {"rounding": "correlated"},
}


def workers_here() -> int:
    return WORKERS // dist.get_world_size()


def trained(rank: int) -> dict:
    """Every method, and every option with alq, however many processes share four workers."""
    found = {method: train(rank, method, workers_here(), steps=7, **HOSTS) for method in EXCHANGED}
    for name, options in OPTIONS.items():
        found[name] = train(rank, "alq", workers_here(), steps=7, **HOSTS | options)
    for dtype in (torch.float16, torch.bfloat16):
        found[str(dtype)] = train(rank, "qsgd_inf", workers_here(), steps=7, dtype=dtype, **HOSTS)
    found["all_gather"] = train(rank, "alq", workers_here(), steps=7)
    return found


def test_it_does_not_matter_how_many_processes_share_a_host_or_hosts_a_process():
    alone, pairs, together = (run_ranks(trained, world) for world in (4, 2, 1))
    for key, expected in alone[0].items():
        assert len(set(expected["sums"])) == 7, key
        assert expected["finite"], key
        for found in (*alone, *pairs, *together):
            assert found[key]["sums"] == expected["sums"], key
            assert found[key]["levels"] == expected["levels"], key
    found = alone[0]
    for key in ("a host for each worker", "bf16, a host for each worker"):
        assert found[key]["sums"] == found["all_gather"]["sums"]
    others = [key for key in found if "a host for each" not in key]
    assert len({tuple(found[key]["sums"]) for key in others}) == len(others)
    assert alone[0]["error feedback"]["residuals"].keys() == alone[3]["error feedback"]["residuals"].keys()
    for name, held in alone[0]["error feedback"]["residuals"].items():
        np.testing.assert_array_equal(held, alone[1]["error feedback"]["residuals"][name])  # of one host
        assert not np.array_equal(held, alone[2]["error feedback"]["residuals"][name])


def bytes_of(rank: int) -> dict:
    found = {}
    for within in ("float32", "bf16"):
        for method in EXCHANGED:
            exchange = make(method, range(rank * workers_here(), (rank + 1) * workers_here()), **HOSTS, within=within)
            exchange.begin_step(0)
            exchange.exchange([torch.randn(201)] * workers_here(), 0).wait()
            exchange.close()
            found[within, method] = exchange.volume.numbers()
    return found


def test_bytes_within_and_between_hosts_are_those_worked_out_by_hand():
    """201 coordinates: slices of 101 for two processes a host."""
    ranks, pairs = run_ranks(bytes_of, 4), run_ranks(bytes_of, 2)
    for (within, method), numbers in ranks[0].items():
        assert all(other[within, method] == numbers for other in ranks)
        slice_ = -(-part_bytes(method, 201) // 2) + 4
        gradient = 101 * (4 if within == "float32" else 2)
        inside = gradient + gradient + 2 * slice_  # to be added up, added up, and what has arrived from both hosts
        assert numbers == [201, 2 * slice_, inside + slice_, inside + slice_, slice_], method
        row = part_bytes(method, 201) + 4
        assert pairs[0][within, method] == [201, row, row, row, row], method  # a process is a host


def skipping(rank: int) -> dict:
    torch.set_num_threads(1)
    found = {}
    for name, options in {
        "skip all": {"skip": ["*"]},
        "later": {"quantize_from": 100},
        "measured": {"trajectory": "full_precision"},
    }.items():
        exchange = make("alq", range(rank, rank + 1), **HOSTS, **options)
        model = DistributedDataParallel(network())
        exchange.attach(model)
        exchange.begin_step(0, measure=True)
        nn.functional.cross_entropy(model(batch(rank, 0)[0]), batch(rank, 0)[1]).backward()
        found[name] = exchange.volume.numbers(), exchange.nmse, [one.grad.numpy().copy() for one in model.parameters()]
        exchange.close()
    model = DistributedDataParallel(network())
    nn.functional.cross_entropy(model(batch(rank, 0)[0]), batch(rank, 0)[1]).backward()
    found["plain"] = [0], 0.0, [one.grad.numpy().copy() for one in model.parameters()]
    return found


def test_what_is_not_quantized_is_exact_and_one_of_a_host_sends_it_on():
    for found in run_ranks(skipping, 4):
        exact = 2 * 3 * 4 * 1303 // 4  # a ring of four
        inside = 2 * 4 * 652  # of what is only measured, two slices
        assert found["skip all"][0] == [1303, 4 * 1303, exact, exact, exact // 2]
        for name in ("later", "measured"):
            assert found[name][0] == [1303, 4 * 1303, exact + inside, exact + inside, exact // 2]
        assert found["measured"][1] > 0
        for name in ("skip all", "later", "measured"):
            for one, plain in zip(found[name][2], found["plain"][2], strict=True):
                np.testing.assert_allclose(one, plain, rtol=1e-5, atol=1e-7)


def within_skipped(rank: int) -> list[list[int]]:
    found = []
    for options in ({"skip": ["bias"]}, {"skip": ["bias"], "precondition": True, "buckets": "layer"}):
        found.append(train(rank, "alq", steps=6, **HOSTS, **options)["sums"])
    return found


def test_replicas_are_equal_beside_skipped_parameters():
    first, *others = run_ranks(within_skipped, 4)
    assert all(other == first for other in others)


def contract(rank: int) -> dict:
    torch.set_num_threads(1)
    return {method: means(rank, method, "hierarchical", hosts=2) for method in ("qsgd_inf", "terngrad", "dither")}


def test_the_mean_is_unbiased():
    found = run_ranks(contract, 4)[0]
    assert [method for method, one in found.items() if not is_unbiased(one)] == []


def errors(rank: int) -> dict:
    """Sums of squares of what is wrong with the mean of gradients that are equal, and that have nothing in common."""
    torch.set_num_threads(1)
    found = {}
    for kind in ("equal", "independent"):
        gradient = torch.randn(4096, generator=torch.Generator().manual_seed(rank if kind == "independent" else 9))
        exact = gradient.clone()
        dist.all_reduce(exact)
        for name, options in {"all_gather": {}, "hierarchical": HOSTS}.items():
            exchange = make("qsgd_inf", range(rank, rank + 1), 512, **options)
            total = 0.0
            for step in range(40):
                exchange.begin_step(step)
                total += float((exchange.exchange([gradient], 0).wait() - exact / 4).double().square().sum())
            exchange.close()
            found[kind, name] = total
    return found


def test_errors_are_those_of_two_roundings_of_hosts_means():
    """A rounding's error is in proportion to the energy of what it rounds, which for the mean of k gradients is that of
    one where they are equal, 1/k where they have nothing in common. The mean over H of K/k senders has 1/H of it: k
    times, and once, that of all K workers."""
    found = run_ranks(errors, 4)[0]
    assert found["equal", "hierarchical"] / found["equal", "all_gather"] == pytest.approx(2, rel=0.05)
    assert found["independent", "hierarchical"] / found["independent", "all_gather"] == pytest.approx(1, rel=0.1)


def rounded_within(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """topk that sends everything shows the hosts' means as they are."""
    gradient = torch.randn(300, generator=torch.Generator().manual_seed(rank))
    options = ExchangeOptions(**HOSTS, within="bf16")
    exchange = GradientExchange(Quantizer.create("topk", density=1.0), options, dist.group.WORLD, [rank])
    exchange.begin_step(0)
    return gradient.numpy(), exchange.exchange([gradient], 0).wait().numpy()


def test_bf16_within_rounds_gradients_and_the_mean_to_the_nearest():
    found = run_ranks(rounded_within, 4)
    gradients = [torch.from_numpy(gradient).bfloat16().float() for gradient, _ in found]
    hosts = [((gradients[one] + gradients[one + 1]) / 2).bfloat16().float() for one in (0, 2)]
    for _, mean in found:
        np.testing.assert_allclose(mean, (hosts[0] + hosts[1]) / 2, rtol=1e-6, atol=1e-7)


def out_of_step(rank: int) -> str:
    exchange = make("qsgd_inf", range(rank, rank + 1), **HOSTS)
    exchange.begin_step(1 if rank == 1 else 0)
    try:
        exchange.exchange([torch.ones(100)], 0).wait()
    except RuntimeError as error:
        return str(error)
    return "not noticed"


def with_other_levels(rank: int) -> str:
    return other_levels(rank, **HOSTS)


def test_ranks_of_one_host_that_differ_are_noticed():
    for message in run_ranks(with_other_levels, 4):
        assert message.startswith("step 2")
        assert "LevelsDifferError" in message
        assert "rank 1 of 4" in message
    for message in run_ranks(out_of_step, 4):
        assert "of different levels or of different steps" in message
        assert "rank 1 of 4" in message


def placed(rank: int, where: list[str], **options) -> str | list[int]:
    """As if each rank were on the host of this name."""
    placement.host_here = lambda: where[rank]
    try:
        return train(rank, "qsgd_inf", steps=2, reduction="hierarchical", **options)["sums"]
    except ValueError as error:
        return str(error)


def with_hosts(rank: int, options: dict) -> str | list[int]:
    return placed(rank, ["one"] * 4, **options)


def test_hosts_are_where_ranks_are_placed():
    found = run_ranks(placed, 4, ["a", "a", "b", "b"])
    assert found == run_ranks(with_hosts, 4, {"hosts": 2})
    assert run_ranks(placed, 4, list("abcd")) == run_ranks(with_hosts, 4, {"hosts": 4})
    for message in run_ranks(placed, 4, ["a"] * 4):
        assert "all 4 processes on one host" in message
        assert "allowed: several hosts, or exchange.hosts: N" in message
    for where, said in {
        "aaab": "host 0 has rank 0, 1, 2; host 1 has rank 3",
        "abab": "host 0 has rank 0, 2; host 1 has rank 1, 3",
    }.items():
        for message in run_ranks(placed, 4, list(where)):
            assert said in message
            assert "as many neighbouring ranks on each" in message


@pytest.mark.parametrize(("world", "hosts"), [(4, 3), (3, 2), (2, 3)])
def test_hosts_hold_whole_processes_and_workers(world, hosts):
    for message in run_ranks(with_hosts, world, {"hosts": hosts}):
        assert f"found {hosts} hosts for {world} workers in {world} processes; allowed" in message


def attached(rank: int, stop: int | None = None, hosts: int = 2) -> list[int]:
    """Checksums after each of 8 steps of a script of one's own; continued by another exchange after some."""
    torch.set_num_threads(1)
    options = {"reduction": "hierarchical", "bits": 3, "bucket_size": 64, "update_at": (0, 3), "error_feedback": True}

    def begin():
        model = DistributedDataParallel(network(), bucket_cap_mb=0.003)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, lqray.attach(model, "alq", hosts=hosts, **options)

    model, optimizer, exchange = begin()
    sums = []
    for step in range(8):
        if step == stop:
            states = exchange.gather_state()
            exchange.close()
            kept, moments = model.module.state_dict(), optimizer.state_dict()
            model, optimizer, exchange = begin()
            shared = [states]
            dist.broadcast_object_list(shared)
            model.module.load_state_dict(kept)
            optimizer.load_state_dict(moments)
            exchange.load_state_dict(shared[0])
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        sums.append(checksum(model.module))
    state = exchange.state_dict()
    exchange.close()
    other = begin()[2] if hosts == 2 else None
    if other:
        with pytest.raises(ValueError, match="found 2 hosts, and the state of an exchange of 4"):
            other.load_state_dict({**state, "hosts": {"count": torch.tensor(4)}})
        other.close()
    return sums


def attached_and_continued(rank: int) -> list[list[int]]:
    return [attached(rank, stop) for stop in (None, 1, 5)] + [attached(rank, hosts=4)]


def test_attached_to_a_script_of_ones_own_and_continued():
    ranks = run_ranks(attached_and_continued, 4)
    whole = ranks[0][0]
    assert len(set(whole)) == 8
    for found in ranks:
        assert found[:3] == [whole] * 3
        assert found[3] == ranks[0][3] != whole


def refused(rank: int) -> list[str]:
    model, said = DistributedDataParallel(network()), []
    for call in (
        lambda: lqray.attach(model, "alq", hosts=2),
        lambda: lqray.attach(model, "alq", hosts=2, reduction="all_gather", within="bf16"),
        lambda: lqray.attach(model, "alq", reduction="hierarchical", hosts=1),
        lambda: lqray.attach(model, "alq", reduction="hierarchical", hosts=2, entropy="rans"),
        lambda: lqray.quantized_all_reduce(torch.ones(9), "alq", reduction="hierarchical"),
        exchange_of_fresh_samples,
    ):
        with pytest.raises(ValueError, match="allowed|greater|slices") as error:
            call()
        said.append(str(error.value))
    return said


def exchange_of_fresh_samples() -> None:
    quantizer = Quantizer.create("alq", sampling="fresh")
    GradientExchange(quantizer, ExchangeOptions(**HOSTS), dist.group.WORLD, [1, 2]).begin_step(0)


def test_what_does_not_go_with_it_is_refused():
    (said,) = run_ranks(refused, 1)
    assert "attach: hosts without reduction='hierarchical'" in said[0]
    assert "attach: hosts, within without reduction='hierarchical'" in said[1]
    assert "greater than or equal to 2" in said[2]
    assert "entropy: none: each process of a host" in said[3]
    assert "quantized_all_reduce over a group of" in said[4]
    assert "sampling='fresh' with reduction='hierarchical'" in said[5]


def bypassing(rank: int) -> tuple[bool, float]:
    options = ExchangeOptions(**HOSTS, error_feedback=True)
    workers = workers_here()
    found = decide(Quantizer.create("alq"), 10_000, dist.group.WORLD, torch.device("cpu"), options, workers)
    return found.bypass, found.exchange_seconds


@pytest.mark.parametrize("world", [2, 4])
def test_bypass_measures_it(world):
    first, *others = run_ranks(bypassing, world)
    assert all(other == first for other in others)
    assert first[1] > 0
