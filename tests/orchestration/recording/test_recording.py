"""What reaches MLflow, and what a worker keeps for it."""

import math
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from lqray.experiment.options.resources import Resources
from lqray.experiment.options.storage import Storage
from lqray.orchestration.failures import Failure, failure_of, lost, root_cause
from lqray.orchestration.queue.stop_rules import StopRuleError, parse_stop_rule
from lqray.orchestration.recording import metric_writer
from lqray.orchestration.recording import metrics as delivery_module
from lqray.orchestration.recording.metrics import MetricDelivery
from lqray.orchestration.worker.points import Point
from lqray.orchestration.worker.reporter import Reporter
from lqray.orchestration.worker.task import Ack, WorkerTask
from lqray.store.client import reading_client
from lqray.store.runs import _from_search, _from_tables, latest_runs
from lqray.store.tables import connected
from lqray.training.checkpoint import CheckpointError
from lqray.training.reports import Report


@pytest.fixture(scope="module")
def new_store(tmp_path_factory):
    """Made once: MLflow takes seconds for it."""
    file = tmp_path_factory.mktemp("store") / "runs.db"
    MlflowClient(f"sqlite:///{file}").create_experiment("e")
    return file


@pytest.fixture
def store(tmp_path, new_store):
    shutil.copy(new_store, tmp_path / "runs.db")
    uri = f"sqlite:///{tmp_path}/runs.db"
    client = MlflowClient(uri)
    return uri, client, client.create_run("1").info.run_id


def test_points_arrive_in_order_and_once(store):
    uri, client, run_id = store
    client.log_metric(run_id, "a", 5.0, step=5)  # from before
    delivery = MetricDelivery(uri)
    try:
        points = [Point(step, 0, {"a": float(step), f"b{step % 7}": 1.0}) for step in range(1, 1501)]
        delivery.write(run_id, points[:700], '{"iteration": 1}')
        delivery.write(run_id, points[700:])
        assert delivery.settle(run_id, 300)
        assert delivery.delivered(run_id) == 1500
        delivery.write(run_id, points[-10:])  # a worker that continued says again what it said
        assert delivery.settle(run_id, 300)
    finally:
        delivery.close()
    history = client.get_metric_history(run_id, "a")
    assert sorted(metric.step for metric in history) == list(range(5, 1501))
    assert sum(len(client.get_metric_history(run_id, f"b{k}")) for k in range(7)) == 1500
    assert client.get_run(run_id).data.tags["lqray.progress"] == '{"iteration": 1}'


class FlakyClient:
    """Loses the answer to every other batch, after or before the store has it."""

    def __init__(self, client):
        self.client, self.calls = client, 0

    def get_run(self, run_id):
        return self.client.get_run(run_id)

    def log_batch(self, run_id, **batch):
        self.calls += 1
        if self.calls % 4 != 3:
            self.client.log_batch(run_id, **batch)
        if self.calls % 2:
            raise ConnectionError("the answer was lost")


def test_a_batch_whose_answer_was_lost_is_not_written_twice(store, monkeypatch):
    _, client, run_id = store
    monkeypatch.setattr(metric_writer, "_BATCH", 10)
    run, told = metric_writer.Delivery(), []
    run.points.extend(Point(step, 0, {"a": float(step)}) for step in range(1, 96))
    flaky = FlakyClient(client)
    while run.points:
        metric_writer.deliver(flaky, run_id, run, told.append)
    assert sum(message[3] for message in told if message[0] == "delivered") == 95
    assert sorted(metric.step for metric in client.get_metric_history(run_id, "a")) == list(range(1, 96))


class FaultyClient:
    """Fails the k-th call and, where it fails them all, every later one; before it is done, or after."""

    def __init__(self, client, k, done, always=False):
        self.client, self.k, self.done, self.always, self.calls = client, k, done, always, 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls += 1
            fails = self.calls == self.k or (self.always and self.calls > self.k)
            if fails and not self.done:
                raise ConnectionError("away")
            result = getattr(self.client, name)(*args, **kwargs)
            if fails:
                raise ConnectionError("the answer was lost")
            return result

        return call


@pytest.mark.parametrize("done", [False, True])
def test_every_call_of_a_delivery_may_fail(store, monkeypatch, done):
    _, client, _ = store
    monkeypatch.setattr(metric_writer, "_BATCH", 10)
    reached, k = True, 0
    while reached:
        k += 1
        run_id = client.create_run("1").info.run_id
        faulty, run, told = FaultyClient(client, k, done), metric_writer.Delivery(), []
        run.points.extend(Point(step, 0, {"a": float(step), "b c": 1.0}) for step in range(1, 26))
        while run.points:
            metric_writer.deliver(faulty, run_id, run, told.append)
        reached = faulty.calls >= k
        for key in ("a", "b c"):
            steps = sorted(metric.step for metric in client.get_metric_history(run_id, key))
            assert steps == list(range(1, 26)), (k, key)
    assert k > 4


@pytest.mark.parametrize("how", ["missing", "deleted", "deleted on the way"])
def test_a_run_that_is_gone_is_not_asked_for_ever(store, how):
    """Before, an error that came before anything was sent popped nothing: it was met again, for ever."""
    _, client, run_id = store
    run, told = metric_writer.Delivery(7), []
    if how == "missing":
        run_id = "0" * 32
    elif how == "deleted":
        client.delete_run(run_id)
    else:
        run.points.append(Point(1, 0, {"a": 1.0}))
        metric_writer.deliver(client, run_id, run, told.append)
        client.delete_run(run_id)
        told.clear()
    run.points += [Point(2, 0, {"a": 1.0}), Point(3, 0, {"a": 1.0})]
    metric_writer.deliver(client, run_id, run, told.append)
    run.points.append(Point(4, 0, {"a": 1.0}))
    metric_writer.deliver(client, run_id, run, told.append)
    assert told == [("gone", run_id, 7), ("delivered", run_id, 7, 2), ("delivered", run_id, 7, 1)]


def test_a_proxy_without_its_server_is_no_deleted_run(store):
    _, _, run_id = store

    class Proxy:
        def get_run(self, run_id):
            raise MlflowException("404 page not found", error_code=RESOURCE_DOES_NOT_EXIST)

    run, told = metric_writer.Delivery(), []
    run.points.append(Point(1, 0, {"a": 1.0}))
    metric_writer.deliver(Proxy(), run_id, run, told.append)
    assert len(run.points) == 1
    assert [message[0] for message in told] == ["trouble"]


def test_a_metric_that_mlflow_refuses_costs_no_other(store):
    """Before, the whole batch was dropped."""
    _, client, run_id = store
    run, told = metric_writer.Delivery(), []
    run.points += [Point(step, 0, {"a": 1.0, "b\nc": 1.0, "d": 2.0}) for step in range(1, 21)]
    metric_writer.deliver(client, run_id, run, told.append)
    run.points.append(Point(21, 0, {"d": "two", "a": 3.0, "b\nc": 1.0}))
    metric_writer.deliver(client, run_id, run, told.append)
    assert [metric.step for metric in client.get_metric_history(run_id, "a")] == list(range(1, 22))
    assert [metric.step for metric in client.get_metric_history(run_id, "d")] == list(range(1, 21))
    refused = [message[3] for message in told if message[0] == "refused"]
    assert refused == ["b\nc"] * 3 + ["d"]
    assert sum(message[3] for message in told if message[0] == "delivered") == 21


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_points_survive_the_process_that_delivers_them(store, monkeypatch, how):
    """Before, they were lost with it, and the trial was recorded as FINISHED without them."""
    uri, client, run_id = store
    monkeypatch.setattr(delivery_module, "_SILENT_SECONDS", 10.0)
    delivery = MetricDelivery(uri)
    try:
        points = [Point(step, step, {"a": float(step)}) for step in range(1, 3001)]
        delivery.write(run_id, points[:1500])
        assert delivery.settle(run_id, 300)
        delivery.write(run_id, points[1500:])
        os.kill(delivery._process.pid, how)
        assert delivery.settle(run_id, 300)
        assert delivery.delivered(run_id) == 3000
    finally:
        delivery.close()
    assert sorted(metric.step for metric in client.get_metric_history(run_id, "a")) == list(range(1, 3001))


@pytest.mark.processes
def test_a_process_that_dies_again_and_again_is_not_waited_for(store, monkeypatch):
    uri, _, run_id = store
    monkeypatch.setattr(delivery_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(metric_writer, "serve", time.sleep)  # raises at once: two arguments
    delivery = MetricDelivery(uri)
    try:
        delivery.write(run_id, [Point(1, 0, {"a": 1.0})])
        assert not delivery.settle(run_id, 600)
        assert delivery.trouble(run_id)[0].startswith("the process that delivers metrics ended")
    finally:
        delivery.close()


class Link:
    def __init__(self):
        self.sent, self.answer = [], Ack()

    def send(self, update):
        self.sent += update.points

    def acknowledged(self):
        return self.answer

    def close(self): ...


def task(folder: Path, *rules: str) -> WorkerTask:
    chosen = tuple(map(parse_stop_rule, rules))
    return WorkerTask("t", "n", {}, Resources(), Storage(), str(folder), "r", 1, "gloo", "c", chosen)


def test_what_mlflow_does_not_have_is_kept_beside_the_checkpoint(tmp_path):
    link = Link()
    reporter = Reporter(task(tmp_path), link, lambda line: None)
    for step in range(1, 11):
        reporter.report(Report(step, 100, {"a": float(step), "b": math.nan}, evaluated=step == 4))
    link.answer = Ack(delivered=4)
    reporter.secure()
    reporter.close()
    assert [point.step for point in link.sent] == list(range(1, 11))
    assert all(point.metrics == {"a": float(point.step)} for point in link.sent)

    other = Link()
    Reporter(task(tmp_path), other, lambda line: None).close()
    assert [point.step for point in other.sent] == list(range(5, 11))
    other.answer = Ack(delivered=6)
    again = Reporter(task(tmp_path), other, lambda line: None)
    again.secure()
    assert not (tmp_path / "undelivered.jsonl").exists()


def spooled(folder: Path) -> bytes:
    """A spool with steps 1 to 3."""
    reporter = Reporter(task(folder), Link(), lambda line: None)
    for step in range(1, 4):
        reporter.report(Report(step, 100, {"a": float(step)}))
    reporter.secure()
    return (folder / "undelivered.jsonl").read_bytes()


def taken_up(folder: Path, **changes) -> list[int]:
    link = Link()
    Reporter(replace(task(folder), **changes), link, lambda line: None).close()
    return [point.step for point in link.sent]


def test_a_spool_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "undelivered.jsonl").write_bytes(spooled(tmp_path).partition(b"\n")[2])
    assert taken_up(tmp_path) == [1, 2, 3]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (half, "its checksum differs"),
        (lambda content: content.replace(b"2.0", b"3.0"), "its checksum differs"),
        (lambda content: half(content.partition(b"\n")[2]), "its last line is cut off"),  # of an earlier version
        (lambda content: content.partition(b"\n")[2].replace(b'"step"', b'"stop"'), "no point of metrics"),
        (lambda content: b"\xff\xfe\n", "cut off or damaged"),
        (lambda content: content.replace(b'"t"', b'"u"', 1), "it is of trial u"),
        (lambda content: content.replace(b'"r"', b'"s"', 1), "run s; this is trial t, run r"),
        (lambda content: content.replace(b"points 1", b"points 2", 1), "its format is 'undelivered points 2'"),
    ],
)
def test_a_spool_that_is_not_its_own_or_not_whole_is_set_aside(tmp_path, damage, said):
    """Before, another trial's was recorded, and half a line failed the trial as its user's error. Checkpoints that lead
    past what the store has go with it: what was measured on the way to them might never be recorded."""
    spool = tmp_path / "undelivered.jsonl"
    spool.write_bytes(damage(spooled(tmp_path)))
    damaged = spool.read_bytes()
    for step in (10, 20, 30):
        (tmp_path / f"step-{step:010d}.pt").touch()
    with pytest.warns(UserWarning, match="undelivered.jsonl is not used: ") as warned:
        assert taken_up(tmp_path, recorded=20) == []
    assert said in str(warned[0].message)
    assert sorted(file.name for file in tmp_path.glob("[!u]*")) == ["step-0000000010.pt", "step-0000000020.pt"]
    aside = sorted(file.name.partition("-")[2][9:] for file in tmp_path.glob("unused-*"))
    assert aside == ["step-0000000030.pt", "undelivered.jsonl"]
    assert next(tmp_path.glob("unused-*-undelivered.jsonl")).read_bytes() == damaged
    assert taken_up(tmp_path, recorded=20) == []


@pytest.mark.parametrize("what", ["folder", "loop", "link to nothing"])
def test_a_spool_that_is_no_file_is_set_aside(tmp_path, what):
    spool = tmp_path / "undelivered.jsonl"
    if what == "folder":
        spool.mkdir()
    else:
        spool.symlink_to("undelivered.jsonl" if what == "loop" else "nothing")
    with pytest.warns(UserWarning, match="is not used"):
        assert taken_up(tmp_path) == []
    assert list(tmp_path.glob("unused-*"))


def test_a_spool_that_cannot_be_written_says_where(tmp_path):
    reporter = Reporter(task(tmp_path / "file" / "below"), Link(), lambda line: None)
    (tmp_path / "file").write_text("")
    reporter.report(Report(1, 100, {"a": 1.0}))
    with pytest.raises(CheckpointError, match=f"cannot be kept in {tmp_path}/file/below: .*free space there"):
        reporter.secure()


def test_stop_rules(tmp_path):
    link = Link()
    reporter = Reporter(task(tmp_path, "accuracy<0.5@20", "NaN"), link, lambda line: None)
    reporter.report(Report(10, 100, {"test/accuracy": 0.1}, evaluated=True))
    assert not reporter.stop()
    reporter.report(Report(20, 100, {"test/accuracy": 0.4}, evaluated=True))
    assert reporter.stop()
    assert reporter.broken_rule == "test/accuracy<0.5@20"
    assert parse_stop_rule("nan").broken(1, {"train/loss": math.nan})
    assert parse_stop_rule("loss > 1e3").broken(1, {"train/loss": 2e3})
    for bad in ("accuracy", "accuracy<x", "accuracy<=1", ""):
        with pytest.raises(StopRuleError, match="allowed: NaN"):
            parse_stop_rule(bad)


def raised(error: BaseException, rank: int = 0) -> Failure:
    try:
        raise error
    except BaseException as caught:
        return failure_of(caught, rank)


class RankLostError(RuntimeError): ...


class DivergedError(RuntimeError): ...


def test_failures_are_sorted_and_blamed():
    assert raised(ValueError("x")).kind == "user_error"
    assert raised(MemoryError()).kind == "out_of_memory"
    assert raised(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")).kind == "out_of_memory"
    assert raised(DivergedError("x")).kind == "non_finite"
    assert raised(RankLostError("x")).kind == "infrastructure"
    assert lost("ray.exceptions.OutOfMemoryError: ...").kind == "out_of_memory"
    assert lost("the driver died").retry
    cause = root_cause({0: raised(RankLostError("rank 1"), 0), 1: raised(ValueError("mine"), 1)})
    assert (cause.kind, cause.rank, cause.error) == ("user_error", 1, "ValueError: mine")
    both = root_cause({0: raised(RankLostError("a"), 0), 2: raised(RankLostError("b"), 2)})
    assert both.retry
    assert "rank 0:" in both.traceback


def both_ways(uri, *wanted):
    """The runs of experiment e, from the tables and from MLflow's search."""
    with connected(uri) as connection:
        tables = list(_from_tables(connection, "e", *wanted))
    search = list(_from_search(reading_client(uri), "e", *wanted))
    return [sorted(runs, key=lambda run: run.run_id) for runs in (tables, search)]


def test_states_from_the_tables_are_those_of_mlflows_search(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    assert latest_runs(uri, "e") == {}
    assert not (tmp_path / "runs.db").exists()
    client = MlflowClient(uri)
    experiment = client.create_experiment("e")
    for number in range(6):
        tags = {"lqray.trial_id": f"{number % 4}", "lqray.trial_name": f"n{number}", "lqray.extra": "x", "other": "y"}
        run = client.create_run(experiment, tags=tags, run_name="r").info.run_id
        client.set_terminated(run, ["FINISHED", "FAILED", "KILLED"][number % 3])
        time.sleep(0.002)
    client.create_run(experiment, run_name="of another tool")
    client.delete_run(client.create_run(experiment, tags={"lqray.trial_id": "9"}).info.run_id)
    found = latest_runs(uri, "e", ["lqray.extra"])
    assert sorted(found) == ["0", "1", "2", "3"]
    assert found["1"].name == "n5"
    assert found["1"].tags == {"lqray.trial_id": "1", "lqray.trial_name": "n5", "lqray.extra": "x"}
    tables, search = both_ways(uri, ["lqray.trial_id", "lqray.extra"], ["m"], False)
    assert tables == search
    client.log_metric(found["2"].run_id, "m", 1.0, step=1)
    client.log_metric(found["2"].run_id, "m", 0.5, step=2)
    client.log_metric(found["3"].run_id, "n", float("inf"))
    client.log_param(found["3"].run_id, "p", "q")
    client.set_tag(found["3"].run_id, "lqray.nan_metrics", "m,o")
    for wanted in ((None, None, True), (["lqray.trial_id"], ["m"], False), (["lqray.trial_id"], (), True)):
        tables, search = both_ways(uri, *wanted)
        assert list(map(repr, tables)) == list(map(repr, search))  # in which NaN is equal to NaN
    assert latest_runs(uri, "e", [], ["m"])["2"].metrics == {"m": 0.5}
