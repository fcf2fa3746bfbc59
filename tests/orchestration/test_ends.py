"""How trials end in a store, in sweeps in this process that something happens to."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lqray.experiment.grid import read_experiment
from lqray.orchestration.launch import run_plan
from lqray.orchestration.plan.plan import RunOptions, make_plan
from lqray.orchestration.recording import recorder as recorder_module
from lqray.orchestration.recording.artifacts import ArtifactWriter
from lqray.orchestration.recording.metrics import MetricDelivery

TEXT = """
name: ends
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 60, batch_size: 16, evaluate_every: 10}
  workers: 2
  quantizer: {method: qsgd, bits: 3, bucket_size: 64}
  telemetry: {every: 1}
sweep:
  - matrix: {seed: [1, 2]}
resources: {processes: 1}
"""


class Observer:
    """Does something at the first trial's first report."""

    def __init__(self, act=lambda: None):
        self.act = act

    def started(self, named, continued): ...

    def progressed(self, trial_id, report):
        act, self.act = self.act, lambda: None
        act()

    def retrying(self, named, failure, seconds): ...
    def moving(self, named, why): ...
    def ended(self, result): ...


@pytest.fixture(scope="module")
def new_store(tmp_path_factory):
    file = tmp_path_factory.mktemp("store") / "runs.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def sweep(tmp_path, new_store):
    """(client, function that runs the sweep and gives results by name)."""
    shutil.copy(new_store, tmp_path / "runs.db")
    uri = f"sqlite:///{tmp_path}/runs.db"
    path = tmp_path / "ends.yaml"
    path.write_text(f"{TEXT}\ntracking: {{uri: '{uri}', system_metrics: false}}\nstorage: {{folder: {tmp_path}/s}}\n")

    def run(act=lambda: None):
        return {result.named.name: result for result in whole(act).results}

    def whole(act=lambda: None):
        experiment, options = read_experiment(path), RunOptions("inline")
        return run_plan(make_plan(experiment, options), options, Observer(act))

    run.whole = whole
    return MlflowClient(uri), run


def runs(client: MlflowClient) -> dict[str, object]:
    found = client.search_runs([client.get_experiment_by_name("ends").experiment_id])
    return {run.info.run_name: run for run in found}


def steps(client: MlflowClient, run, key: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]


def test_a_run_that_is_deleted_stops_its_trial_and_no_other(sweep, caplog):
    """Before, the others' metrics were never delivered, or the sweep ended with a traceback."""
    client, run = sweep
    results = run(lambda: client.delete_run(next(iter(runs(client).values())).info.run_id))
    (left,) = runs(client).values()
    assert left.info.status == "FINISHED"
    assert steps(client, left, "train/loss") == list(range(1, 61))
    gone = next(result for name, result in results.items() if name != left.info.run_name)
    assert (gone.status, gone.stopped) == ("KILLED", "its run was deleted")
    assert "is not recorded any further: its run was deleted" in caplog.text


def test_artifacts_that_cannot_be_written_end_nothing(sweep, tmp_path, monkeypatch, caplog):
    """Before, a sweep ended at the first of them, with its trial RUNNING."""
    client, run = sweep
    (tmp_path / "lqray-artifacts").write_text("in the way")
    monkeypatch.setattr(recorder_module, "ArtifactWriter", lambda uri, machine: ArtifactWriter(uri, machine, 0.0))
    assert {result.status for result in run().values()} == {"FINISHED"}
    assert {one.info.status for one in runs(client).values()} == {"FINISHED"}
    assert f"cannot be written to file://{tmp_path}/lqray-artifacts/ends/" in caplog.text
    assert "artifacts are missing" in caplog.text


def test_a_trial_whose_metrics_are_not_delivered_is_not_finished(sweep, monkeypatch):
    """It is tried again, from its checkpoint, and every point is there once. Before, it was FINISHED without."""
    client, run = sweep
    settle, lost = MetricDelivery.settle, []

    def once(self, run_id, patience):
        done = settle(self, run_id, patience)
        lost.append(run_id)
        return done and len(lost) > 1

    monkeypatch.setattr(MetricDelivery, "settle", once)
    assert {result.status for result in run().values()} == {"FINISHED"}
    assert len(lost) == 3
    for one in runs(client).values():
        assert one.info.status == "FINISHED"
        assert steps(client, one, "train/loss") == list(range(1, 61))
        assert steps(client, one, "test/accuracy") == list(range(10, 61, 10))


def test_a_metric_that_is_refused_fails_its_trial_by_name(sweep, monkeypatch):
    client, run = sweep
    record = recorder_module.Recorder.record

    def spoiled(self, update):
        for point in update.points:
            point.metrics["a\nb"] = 1.0
        record(self, update)

    monkeypatch.setattr(recorder_module.Recorder, "record", spoiled)
    results = run()
    assert {result.failure.kind for result in results.values()} == {"user_error"}
    for one in runs(client).values():
        assert one.info.status == "FAILED"
        assert "MLflow refuses to record of it 'a\\nb'" in one.data.tags["lqray.error"]
        assert steps(client, one, "train/loss") == list(range(1, 61))


def test_a_full_disk_ends_the_launch_with_path_and_bytes_and_the_next_one_continues(sweep, tmp_path, monkeypatch):
    """Before, every trial failed, one after the other, and none said where."""
    client, run = sweep
    write = os.fsync

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(".step-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        ran = run.whole()
    assert [(result.status, result.stopped) for result in ran.results] == [("KILLED", "there is no room for its files")]
    assert re.search(rf"{tmp_path}/s/ends/\w+/step-\d+.pt takes [\d,]+ bytes, and there is no room", ran.halted)
    assert not list((tmp_path / "s").glob("**/*.tmp"))
    assert {result.status for result in run().values()} == {"FINISHED"}
    assert {one.info.status for one in runs(client).values()} == {"FINISHED"}
