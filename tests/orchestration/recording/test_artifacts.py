"""Artifacts are secondary: what cannot be written is tried again, then said, and costs nothing else."""

import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from lqray.orchestration.failures import Failure
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.recording import artifacts, runs
from lqray.orchestration.recording.artifacts import ArtifactWriter
from lqray.orchestration.recording.launch_files import LaunchFiles, write_texts


class Client:
    """Fails so many times first."""

    def __init__(self, failures: int, error: Exception):
        self.left, self.error, self.texts = failures, error, {}

    def log_text(self, run_id, text, name):
        if self.left:
            self.left -= 1
            raise self.error
        self.texts[run_id, name] = text


def run(number: int):
    return SimpleNamespace(info=SimpleNamespace(run_id=f"r{number}", artifact_uri=f"s3://store/r{number}/artifacts"))


def failed() -> TrialResult:
    return TrialResult(None, "FAILED", failure=Failure("user_error", "it", "whole"))


def test_what_fails_for_a_while_is_written(caplog):
    client, writer = Client(2, OSError(28, "No space left on device")), ArtifactWriter("sqlite://")
    writer.end(client, run(1), failed())
    writer.end(client, run(2), failed())
    writer.close(60)
    assert set(client.texts) == {("r1", "traceback.txt"), ("r2", "traceback.txt")}
    assert caplog.records == []


def test_what_cannot_be_written_is_said_once_with_its_place(caplog):
    client, writer = Client(10**6, OSError(28, "No space left on device")), ArtifactWriter("sqlite://", patience=0.0)
    for number in range(100):
        writer.end(client, run(number), failed())
    writer.close(60)
    first, last = (record.message for record in caplog.records)
    assert first.startswith("traceback.txt of run r0 cannot be written to s3://store/r0/artifacts: OSError: [Errno 28]")
    assert last.startswith("100 artifacts are missing in s3://store;")


def test_the_end_waits_no_longer_than_it_may(caplog):
    hold, writer = threading.Event(), ArtifactWriter("sqlite://")
    client = SimpleNamespace(log_text=lambda *_: hold.wait(60))
    writer.end(client, run(1), failed())
    writer.end(client, run(2), failed())
    writer.close(0.05)
    hold.set()
    assert "2 artifacts are missing" in caplog.text


def test_a_run_whose_first_launch_was_killed_before_it_wrote_its_files_gets_them(tmp_path):
    there = SimpleNamespace(info=SimpleNamespace(run_id="r", artifact_uri=str(tmp_path)))
    (tmp_path / "experiment.yaml").write_text("as it was")
    own = {"experiment.yaml": "edited since", "trial.yaml": "seed: 1"}
    LaunchFiles("sqlite:///it.db").complete(Client(0, OSError()), there, own)
    assert (tmp_path / "experiment.yaml").read_text() == "as it was"
    assert (tmp_path / "trial.yaml").read_text() == "seed: 1"


def test_and_so_does_one_whose_artifacts_are_elsewhere():
    client = Client(0, OSError())
    client.list_artifacts = lambda run_id: [SimpleNamespace(path="experiment.yaml")]
    elsewhere = SimpleNamespace(info=SimpleNamespace(run_id="r", artifact_uri="mlflow-artifacts:/r"))
    LaunchFiles("http://server").complete(client, elsewhere, {"experiment.yaml": "edited", "trial.yaml": "seed: 1"})
    assert client.texts == {("r", "trial.yaml"): "seed: 1"}


def test_a_run_is_ended_when_its_artifacts_are_written_or_have_failed(monkeypatch):
    """Whoever is killed after that costs it none; an artifact that cannot be written holds no run up."""
    order, place = [], run(1)
    client = SimpleNamespace(
        get_run=lambda _: place,
        log_batch=lambda *_, **__: None,
        log_text=lambda *_: (time.sleep(0.1), order.append("text")),
        set_terminated=lambda *_: order.append("end"),
    )
    monkeypatch.setattr(runs, "client_of", lambda _: client)
    files = ArtifactWriter("sqlite://")
    runs.end_run("sqlite://", "r1", failed(), files=files)
    assert order == ["text", "end"]
    client.log_text = Client(10**6, OSError(28, "No space left on device")).log_text
    runs.end_run("sqlite://", "r1", failed(), files=files)
    assert order == ["text", "end", "end"]
    files.close(0.0)


def test_texts_on_this_machine_leave_no_temporary_folder_wherever_the_launch_is_killed(tmp_path, monkeypatch):
    """MLflow's client makes one for each, and a killed process leaves it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    here = SimpleNamespace(info=SimpleNamespace(run_id="r", artifact_uri=(tmp_path / "artifacts").as_uri()))
    write_texts(MlflowClient(f"sqlite:///{tmp_path}/lqray.db"), here, {"density.json": "{}"})
    assert (tmp_path / "artifacts/density.json").read_text() == "{}"


def test_levels_so_far_give_way_to_later_ones_and_are_not_written_to_a_run_of_another_launch(monkeypatch):
    """The first is under way when the others come; of two that wait, the later is written."""
    begun, hold, written = threading.Event(), threading.Event(), []

    def log_text(run_id, text, name):
        begun.set()
        assert hold.wait(60)
        written.append((run_id, name, text))

    client = SimpleNamespace(get_run=lambda run_id: run(int(run_id[1:])), log_text=log_text)
    monkeypatch.setattr(artifacts, "client_of", lambda uri: client)
    writer = ArtifactWriter("sqlite://")
    writer.levels("r1", {"number": 1}, lambda: True)
    assert begun.wait(60)
    writer.levels("r1", {"number": 2}, lambda: True)
    writer.levels("r2", {"number": 1}, lambda: False)
    writer.end(client, run(1), TrialResult(None, "KILLED", levels={"number": 3}))
    hold.set()
    writer.close(60)
    assert written == [("r1", "levels.json", '{"number": 1}'), ("r1", "levels.json", '{"number": 3}')]


def test_a_file_that_cannot_be_written_anew_stays_as_it_was(tmp_path, monkeypatch):
    here = SimpleNamespace(info=SimpleNamespace(run_id="r", artifact_uri=str(tmp_path)))
    write_texts(None, here, {"levels.json": "old"})

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_texts(None, here, {"levels.json": "new"})
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("levels.json", "old")]
