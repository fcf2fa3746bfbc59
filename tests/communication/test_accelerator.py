"""The rules of streams, memory and futures, under an accelerator that does what a GPU may do at worst; and each of the
faults that they mend, put back, which it must find."""

import re
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import lqray.communication
from lqray.communication import LevelsDifferError, decide, exchange, hosts, streams
from lqray.communication.reductions import scatter_reduce
from lqray.communication.skipped import Bundle
from lqray.communication.wire import parcel, stage
from lqray.communication.wire.collectives import gather_now
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer
from tests.testing.accelerator import (
    BUCKETS,
    DEVICE,
    ORDERS,
    DataParallel,
    EchoGroup,
    FakeAccelerator,
    FakeFuture,
    exchange_of,
    train,
)
from tests.testing.accelerator.machine import Machine, Stream

SKIPPING, CODED, SCATTERED, FEEDING_BACK = (
    {"skip": ["bias"]},
    {"entropy": "rans"},
    {"reduction": "scatter_reduce"},
    {"error_feedback": True, "resume": True},
)
BY_HOSTS = {"reduction": "hierarchical", "hosts": 2, "world": 4}
BUDGET = {"bits": {"*.bias": 8, "default": 2}}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def echo(monkeypatch):
    """Groups whose other ranks do what this one does; so they round with its seeds, which nobody compares here."""
    monkeypatch.setattr(exchange, "check_agreement", lambda *_: None)
    monkeypatch.setattr(stage, "twin_of", lambda group: group.twin())
    monkeypatch.setattr(hosts, "part_of", lambda group, parts: group.twin(len(parts[0])))
    monkeypatch.setattr(dist, "destroy_process_group", lambda group: group.destroy())
    yield
    for group in list(EchoGroup.living):
        group.forget()


@pytest.fixture
def accelerator(monkeypatch):
    """Nothing is done on it that the host does not wait for."""
    with FakeAccelerator("demand").installed(monkeypatch) as fake:
        yield fake


def wrong(run=train, fault=None, backend="nccl", world=2, **options):
    """The orders in which an accelerator does not come to what `run` gives on a CPU. fault: what is put in the place of
    what, on the accelerator."""
    expected, found = run(EchoGroup(world), CPU, **options), []
    for order in ORDERS:
        with pytest.MonkeyPatch.context() as patch, FakeAccelerator(order).installed(patch) as fake:
            if fault:
                patch.setattr(*fault)
            try:
                if not torch.equal(run(EchoGroup(world, fake, backend), DEVICE, **options), expected):
                    found.append(order)
            except (RuntimeError, ValueError):  # memory that was overwritten may be no payload, or no levels
                found.append(order)
    return found


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        SCATTERED,
        SKIPPING,
        CODED,
        CODED | SCATTERED | {"world": 1},
        SKIPPING | {"workers": 2},
        SKIPPING | SCATTERED | {"workers": 2},
        {"quantize_from": 2},
        BY_HOSTS | SKIPPING,
        BY_HOSTS | {"workers": 2, "method": "alq", "within": "bf16"},
        BY_HOSTS | {"quantize_from": 2, "world": 1, "workers": 4},
        {"method": "alq"},
        SCATTERED | {"method": "alq"},
        FEEDING_BACK,
        {"error_feedback": "scaled", "method": "alq", "buckets": "layer"},
        BUDGET | FEEDING_BACK,
        BUDGET | SCATTERED | {"method": "alq", "levels": "layer", "workers": 2},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "-",
)
def test_an_accelerator_trains_to_the_bits_of_the_cpu(options, backend):
    assert wrong(backend=backend, **options) == []


def test_the_end_of_a_queue_counts_what_is_being_done():
    machine = Machine("oldest first")
    stream, ends = Stream(machine), []
    stream.push(lambda: ends.append(stream.end.position))
    stream.push(lambda: None)
    beside = threading.Thread(target=lambda: ends.append(stream.end.position))
    stream.push(beside.start)
    stream.synchronize()
    beside.join()
    assert ends == [3, 3]


def without_device(self, device):
    return FakeFuture(self, knows_device=False)


def of_the_host_alone(parts, combine, device):
    """As torch.futures.collect_all."""
    whole = FakeFuture(streams.accelerator, knows_device=False)
    parts[-1].add_done_callback(lambda _: streams.complete(whole, lambda: combine(*(part.wait() for part in parts))))
    return whole


def without_waiting_for_the_first(parts, combine, device):
    whole = streams.future(device)
    parts[-1].add_done_callback(lambda _: streams.complete(whole, lambda: combine(*(part.value() for part in parts))))
    return whole


def without_recording(self, device, tensors=()):
    PREPARE(self, device)


def without_waiting(self, device, tensors=()):
    if streams.queues(device):
        self._stream = self._stream or streams.accelerator.stream(device)


def of_the_collective_alone(works, group, device):
    return works[0].get_future()


def nothing_recorded(*tensors):
    pass


PREPARE = streams.Side.prepare
FAULTS = {
    "a future without its device": (FakeAccelerator, "future", without_device, SKIPPING),
    "a future of two that knows no device": (streams, "after_all", of_the_host_alone, SKIPPING),
    "a future of two that waits for one": (streams, "after_all", without_waiting_for_the_first, SKIPPING),
    "a stream that does not wait for the gradients": (streams.Side, "prepare", without_waiting, {}),
    "gradients of others that are not recorded": (streams.Side, "prepare", without_recording, {"workers": 2}),
    "payloads that are not recorded": (streams.Side, "prepare", without_recording, SCATTERED),
    "gradients of hosts that are not recorded": (
        streams.Side,
        "prepare",
        without_recording,
        BY_HOSTS | {"workers": 2},
    ),
    "slices that nobody waits for": (streams, "arrival", of_the_collective_alone, BY_HOSTS | {"backend": "gloo"}),
    "rows that are not recorded": (streams, "used_here", nothing_recorded, {"backend": "gloo"}),
    "residuals that are not recorded": (streams, "used_here", nothing_recorded, FEEDING_BACK),
    "a future of gloo's": (streams, "arrival", of_the_collective_alone, {"backend": "gloo"}),
    "a future of gloo's, of skipped ones": (
        streams,
        "arrival",
        of_the_collective_alone,
        {"backend": "gloo"} | SKIPPING,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_put_back_gives_wrong_weights(fault):
    *faulty, options = FAULTS[fault]
    assert wrong(fault=faulty, **options)


def mean_beside_new_levels(group, device):
    """Of an exchange without DDP, that nobody has waited for when the levels change."""
    exchange = exchange_of(group, method="alq")
    exchange.begin_step(0)
    mean = exchange.exchange([torch.linspace(-1, 1, 500).square().to(device)], 0)
    assert exchange.update_levels()
    return mean.wait().cpu()


def test_levels_that_are_replaced_are_not_overwritten_while_they_are_read():
    assert wrong(mean_beside_new_levels) == []
    assert wrong(mean_beside_new_levels, fault=(streams, "used_here", nothing_recorded))


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_a_long_message_arrives_whole(accelerator, backend):
    """Over gloo in pieces."""
    own, group = torch.arange(300_000, dtype=torch.int32), EchoGroup(2, accelerator, backend)
    assert gather_now(own.to(DEVICE), group).tolist() == own.tolist() * 2


def differing_in_the_last_step(accelerator, wanted):
    """Trains beside a rank whose check words differ from the `wanted`th exchange of a bucket on."""
    group, seen = EchoGroup(3, accelerator, "nccl"), []

    def spoil(rows):
        seen.append(rows)
        if len(seen) >= wanted:
            rows[1, -1] ^= 1

    group.spoil = spoil
    train(group, DEVICE)


@pytest.mark.parametrize("wanted", [1, 5, 6])
def test_check_words_are_looked_at_to_the_last(accelerator, wanted):
    with pytest.raises(LevelsDifferError, match="rank 1 of 3 differs"):
        differing_in_the_last_step(accelerator, wanted)


@pytest.mark.parametrize(
    ("place", "name", "faulty"),
    [
        (parcel.CheckWords, "raise_all", parcel.CheckWords.raise_found),
        (streams.HostCopy, "wait", lambda self: None),
    ],
)
def test_check_words_that_nobody_looks_at_are_missed(accelerator, monkeypatch, place, name, faulty):
    monkeypatch.setattr(place, name, faulty)
    differing_in_the_last_step(accelerator, 6)


def test_check_words_are_not_read_before_they_have_arrived(accelerator, monkeypatch):
    monkeypatch.setattr(streams.HostCopy, "has_arrived", lambda self: True)
    monkeypatch.setattr(streams.HostCopy, "wait", lambda self: None)
    differing_in_the_last_step(accelerator, 1)


def test_a_checkpoint_is_not_taken_of_an_exchange_that_went_wrong(accelerator):
    group = EchoGroup(2, accelerator, "nccl")
    group.spoil = lambda rows: rows[1, -1].bitwise_xor_(1)
    exchange = exchange_of(group)
    exchange.begin_step(0)
    exchange.exchange([torch.ones(64, device=DEVICE)], 0)
    with pytest.raises(LevelsDifferError):
        exchange.state_dict()


def waits_in_hooks(accelerator, steps=3, world=2, **options):
    """How often the thread of the backward pass waits for the device, from the second step on."""
    exchange, model = exchange_of(EchoGroup(world, accelerator, "nccl"), **options), DataParallel(DEVICE)
    exchange.attach(model)
    hook, waits = model._hook, []

    def counted(bucket):
        before = accelerator.machine.waits.count(threading.get_ident())
        future = hook(bucket)
        waits.append(accelerator.machine.waits.count(threading.get_ident()) - before)
        return future

    model._hook = counted
    for step in range(steps):
        exchange.begin_step(step)
        model.backward(step)
        exchange.update_levels()
    exchange.close()
    return sum(waits[2:])


@pytest.mark.parametrize(
    "options",
    [{}, SCATTERED, SKIPPING, CODED, {"quantize_from": 2}, {"error_feedback": True}, BY_HOSTS],
    ids=str,
)
def test_the_backward_pass_does_not_wait_for_the_device(accelerator, options):
    assert waits_in_hooks(accelerator, **options) == 0


def test_entropy_coding_in_the_thread_of_the_backward_pass_is_found(accelerator, monkeypatch):
    make = stage.Stage.__init__
    monkeypatch.setattr(stage.Stage, "__init__", lambda self, group, host_waits: make(self, group))
    assert waits_in_hooks(accelerator, **CODED) > 0


def early(accelerator, **options):
    """See `DataParallel.early`: of one step."""
    exchange, model = exchange_of(EchoGroup(2, accelerator, "nccl"), **options), DataParallel(DEVICE)
    exchange.attach(model)
    exchange.begin_step(0)
    model.backward(0)
    return model.early


def test_a_step_without_quantizing_is_exchanged_beside_the_backward_pass(accelerator, monkeypatch):
    assert early(accelerator, quantize_from=9) == [True]
    start = Bundle.start
    monkeypatch.setattr(
        Bundle, "start", lambda self, volume: start(self, volume) if len(self._sums) == len(BUCKETS) else None
    )
    assert early(accelerator, quantize_from=9) == [False]


def test_skipped_parameters_wait_for_the_last_bucket(accelerator):
    assert early(accelerator, skip=["*"]) == [False]


@pytest.mark.parametrize("options", [SCATTERED, CODED, SCATTERED | CODED | {"world": 1}, BY_HOSTS], ids=str)
def test_a_closed_exchange_leaves_no_group_and_no_thread(accelerator, options):
    group = EchoGroup(options.get("world", 2), accelerator, "nccl")
    threads = threading.active_count()
    train(group, DEVICE, **{key: value for key, value in options.items() if key != "world"})
    assert EchoGroup.living == [group]
    assert threading.active_count() == threads


def test_an_exchange_that_keeps_its_groups_is_found(accelerator, monkeypatch):
    monkeypatch.setattr(stage.Stage, "close", lambda self: None)
    train(EchoGroup(2, accelerator, "nccl"), DEVICE, **SCATTERED)
    assert len(EchoGroup.living) == 3


def closed_at_work(accelerator):
    exchange = exchange_of(EchoGroup(2, accelerator, "nccl"), **SCATTERED)
    exchange.begin_step(0)
    exchange.exchange([torch.ones(64, device=DEVICE)], 0)
    exchange.close()


def test_a_group_is_not_destroyed_while_the_device_is_at_its_collectives(accelerator, monkeypatch):
    closed_at_work(accelerator)
    monkeypatch.setattr(streams.Side, "synchronize", lambda self: None)
    with pytest.raises(RuntimeError, match="while a device was at its collectives"):
        closed_at_work(accelerator)


def test_groups_of_hosts_end_once_the_device_is_done_with_them(accelerator):
    group = EchoGroup(4, accelerator, "nccl")
    exchange = exchange_of(group, reduction="hierarchical", hosts=2)
    exchange.begin_step(0)
    exchange.exchange([torch.ones(64, device=DEVICE)], 0)
    exchange.close()
    assert EchoGroup.living == [group]


def test_an_exchange_that_cannot_be_made_leaves_no_group(accelerator, monkeypatch):
    made, twin = [], stage.twin_of

    def second_fails(group):
        if made:
            raise RuntimeError("no descriptor left")
        made.append(twin(group))
        return made[-1]

    monkeypatch.setattr(stage, "twin_of", second_fails)
    group = EchoGroup(2, accelerator, "nccl")
    with pytest.raises(RuntimeError, match="no descriptor left"):
        scatter_reduce.ScatterReduce(ExchangeOptions(**SCATTERED), group, parcel.CheckWords())
    assert EchoGroup.living == [group]


def test_measuring_for_a_bypass_leaves_no_group_also_after_an_error(accelerator, monkeypatch):
    group, options = EchoGroup(2, accelerator, "nccl"), ExchangeOptions(**SCATTERED)
    quantizer = Quantizer.create("qsgd_inf", bucket_size=32)
    decision = decide(quantizer, 1000, group, DEVICE, options)
    assert decision.exchange_seconds >= 0.0
    assert EchoGroup.living == [group]
    monkeypatch.setattr(scatter_reduce.ScatterReduce, "_all_means", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        decide(quantizer, 1000, group, DEVICE, options)
    assert EchoGroup.living == [group]


def test_the_seconds_of_a_phase_are_known_once_the_device_is_there(accelerator):
    exchange = exchange_of(EchoGroup(2, accelerator, "nccl"))
    exchange.begin_step(0)
    exchange.exchange([torch.ones(64, device=DEVICE)], 0)
    assert exchange.volume.seconds("encode") == pytest.approx(1e-3)


SPOKEN_BY_STREAMS_ALONE = re.compile(
    r"""cuda|pin_memory|non_blocking|record_stream|current_stream|wait_stream|[^.\w]Future\(|collect_all
    |get_future|\.synchronize\(\)|set_result|set_exception""",
    re.VERBOSE,
)


def test_one_file_speaks_of_streams_and_makes_futures():
    room = Path(lqray.communication.__file__).parent
    for file in room.rglob("*.py"):
        lines = file.read_text().splitlines()
        found = [line for line in lines if SPOKEN_BY_STREAMS_ALONE.search(line)]
        if file.name == "streams.py":
            assert len(found) > 20
        else:
            assert [line for line in found if "_side.synchronize()" not in line] == [], file
