"""Metrics reach MLflow in order and once, whatever fails on the way."""

import math
import os
import shutil
import signal
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from lqray.orchestration.recording import metric_writer
from lqray.orchestration.recording import metrics as delivery_module
from lqray.orchestration.recording.metrics import MetricDelivery
from lqray.orchestration.worker.points import Point


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


def test_what_is_tried_again_later_is_however_often_the_launch_proves_its_claims(store):
    """The longest pause after an outage is three heartbeats."""
    uri, _, run_id = store
    delivery = MetricDelivery(uri)
    try:
        delivery.write(run_id, [Point(1, 0, {"a": 1.0})])
        deadline = time.monotonic() + 60
        while not delivery.delivered(run_id):
            assert time.monotonic() < deadline
            delivery.allow(math.inf)
            time.sleep(0.05)
    finally:
        delivery.close()


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
