"""Who runs a trial, where it is recorded, and what becomes of it when others take, delete or finish it meanwhile."""

import sqlite3
import threading
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.experiment.grid import read_experiment
from lqray.orchestration import launch as launch_module
from lqray.orchestration.queue import control
from lqray.orchestration.recording import claims, holder, recorder
from lqray.orchestration.recording.claims import Claims
from lqray.orchestration.recording.runs import latest_run
from lqray.reporting.records import latest_attempts, read_records
from lqray.store.client import reading_client
from lqray.store.launches import Launch
from lqray.store.runs import _from_search, latest_runs
from tests.testing.small import Quiet, empty_store, launch, write

pytestmark = pytest.mark.processes


@pytest.fixture
def hasty(monkeypatch):
    """Holders are judged within a second or two."""
    for module, name, value in (
        (claims, "HOLDER_PATIENCE", 1.5),
        (claims, "HEARTBEAT_SECONDS", 0.3),
        (claims, "_MARGIN", 0.2),
        (claims, "_LOOK_SECONDS", 0.1),
        (recorder, "HEARTBEAT_SECONDS", 0.3),
        (control, "_POLL_SECONDS", 0.2),
        (control, "_DELETED_SECONDS", 0.3),
        (launch_module, "HOLDER_PATIENCE", 1.5),
        (launch_module, "HEARTBEAT_SECONDS", 0.3),
    ):
        monkeypatch.setattr(module, name, value)


def store_of(path):
    uri = f"sqlite:///{path.parent}/lqray.db"
    return uri, MlflowClient(uri)


def identifier(path) -> str:
    client = store_of(path)[1]
    found = client.get_experiment_by_name("small")
    if found:
        return found.experiment_id
    return client.create_experiment("small", artifact_location=(path.parent / "artifacts").as_uri())


def runs_of(path) -> dict:
    """By trial name and attempt."""
    found = store_of(path)[1].search_runs([identifier(path)])
    return {(run.data.tags["lqray.trial_name"], int(run.data.tags["lqray.attempt"])): run for run in found}


def points(path, run) -> dict:
    client = store_of(path)[1]
    keys = [key for key in run.data.metrics if not key.startswith(("time/", "system/"))]
    return {key: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)] for key in keys}


def trial_of(path, name) -> str:
    return read_experiment(path).find(name).trial.id


class Elsewhere:
    """Another machine's launch, which has claimed a trial and lives until it is told to die."""

    def __init__(self, path, monkeypatch, name="alq"):
        uri, self.client = store_of(path)
        with monkeypatch.context() as there:
            there.setattr(holder, "_space", lambda: "another-machine")
            self.claims = Claims(uri, identifier(path), "there")
        self.trial = trial_of(path, name)
        assert self.claims.claim(self.trial)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    @contextmanager
    def living(self, seconds=None, last=None):
        """Within it, or for so many seconds, it counts; then, if it is to, it does a last thing."""
        self._seconds, self._last = seconds, last
        self._thread.start()
        yield
        self._over.set()
        self._thread.join()

    def _live(self):
        began = claims.now()
        while not self._over.wait(0.2):
            self.claims.prove()
            if self._seconds and claims.now() - began > self._seconds:
                if self._last:
                    self._last()
                return


def test_a_new_run_never_continues_what_a_run_of_another_store_has_left(tmp_path, caplog):
    path = write(tmp_path)
    launch(path)
    before = {name: points(path, run) for (name, _), run in runs_of(path).items()}
    kept = {file: file.read_bytes() for file in (tmp_path / "lqray-storage/small").rglob("*") if file.is_file()}
    assert kept
    empty_store(tmp_path / "lqray.db")
    launch(path)
    after = runs_of(path)
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert {name: points(path, run) for (name, _), run in after.items()} == before
    for file, content in kept.items():
        assert file.read_bytes() == content
    for (name, attempt), run in after.items():
        assert attempt == 1
        assert run.data.tags["lqray.folder"] == f"{tmp_path}/lqray-storage/small/{trial_of(path, name)}-2"
    assert caplog.text.count("is there already, of a run that is not in this store") == 1


def test_a_deleted_runs_trial_begins_anew_and_a_continued_one_keeps_its_folder(tmp_path):
    path = write(tmp_path)
    launch(path, only=("alq",))
    store_of(path)[1].delete_run(runs_of(path)["alq", 1].info.run_id)
    launch(path, only=("alq",), limit=1)
    run = runs_of(path)["alq", 1]
    assert run.data.tags["lqray.folder"].endswith("-2")
    # It goes on where its tag says.
    store_of(path)[1].set_terminated(run.info.run_id, "KILLED")
    _, ran = launch(path, only=("alq",))
    assert [result.run_id for result in ran.results] == [run.info.run_id]
    assert runs_of(path)["alq", 1].data.tags["lqray.folder"] == run.data.tags["lqray.folder"]


def set_clock_back(path) -> None:
    """As if what is recorded so far had begun two hours later."""
    with sqlite3.connect(path.parent / "lqray.db") as connection:
        connection.execute("UPDATE runs SET start_time = start_time + 7200000, end_time = end_time + 7200000")


def test_the_latest_run_is_that_of_the_last_attempt_whatever_the_clocks_say(tmp_path):
    path = write(tmp_path)
    launch(path, only=("alq",))
    for attempt in (2, 3):
        set_clock_back(path)
        launch(path, only=("alq",), rerun=True)
        assert sorted(number for _, number in runs_of(path)) == list(range(1, attempt + 1))
    found = runs_of(path)
    assert all(points(path, run) == points(path, found["alq", 1]) for run in found.values())
    assert len({run.data.tags["lqray.folder"] for run in found.values()}) == 3
    latest, trial = found["alq", 3].info.run_id, trial_of(path, "alq")
    uri, _ = store_of(path)
    assert latest_runs(uri, "small")[trial].run_id == latest
    assert max(_from_search(reading_client(uri), "small", None, (), False), key=lambda one: one.order).run_id == latest
    known = Launch(uri, "small", identifier(path), "x", "", "")
    assert latest_run(known, trial).run_id == latest
    assert [one.run_id for one in latest_attempts(read_records(uri, "small"))] == [latest]


class Deleting(Quiet):
    """Somebody deletes the run of a trial, or the experiment, when the trial first says something."""

    def __init__(self, path, delete):
        super().__init__()
        self.path, self.delete, self.done = path, delete, False

    def progressed(self, trial_id, report):
        if not self.done:
            self.done = True
            (run,) = [run for run in runs_of(self.path).values() if run.data.tags["lqray.trial_id"] == trial_id]
            self.delete(store_of(self.path)[1], run)


def test_deleting_a_run_stops_its_trial_and_no_other(tmp_path):
    path = write(tmp_path)
    _, ran = launch(path, Deleting(path, lambda client, run: client.delete_run(run.info.run_id)))
    results = {result.named.name: (result.status, result.stopped) for result in ran.results}
    assert results == {"full_precision": ("KILLED", "its run was deleted"), "alq": ("FINISHED", None)}
    assert {name: run.info.status for (name, _), run in runs_of(path).items()} == {"alq": "FINISHED"}
    assert launch(path)[1].results[0].status == "FINISHED"  # it was given back


def test_deleting_the_experiment_stops_all_without_a_traceback(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setattr(
        "lqray.cli.progress.Progress.progressed",
        Deleting(path, lambda client, run: client.delete_experiment(run.info.experiment_id)).progressed.__func__,
        raising=True,
    )
    monkeypatch.setattr("lqray.cli.progress.Progress.done", False, raising=False)
    monkeypatch.setattr("lqray.cli.progress.Progress.path", path, raising=False)
    monkeypatch.setattr(
        "lqray.cli.progress.Progress.delete",
        staticmethod(lambda client, run: client.delete_experiment(run.info.experiment_id)),
        raising=False,
    )
    result = CliRunner().invoke(main, ["run", str(path), "--launcher", "inline"], catch_exceptions=False)
    assert "full_precision: killed" in result.output
    assert "its experiment was deleted" in result.output
    assert "small was deleted from" in result.output
    assert "alq: not begun (its experiment was deleted)" in result.output
    assert result.exit_code == 0


def test_a_trial_of_a_launch_that_died_on_another_machine_is_run(tmp_path, hasty, monkeypatch):
    path = write(tmp_path)
    Elsewhere(path, monkeypatch)  # and says nothing more
    _, ran = launch(path)
    assert {result.named.name: result.status for result in ran.results} == {
        "full_precision": "FINISHED",
        "alq": "FINISHED",
    }
    assert not ran.elsewhere


def test_a_trial_of_a_launch_that_lives_is_left_named_and_told_by_the_exit_code(tmp_path, hasty, monkeypatch):
    path = write(tmp_path)
    there = Elsewhere(path, monkeypatch)
    with there.living():
        result = CliRunner().invoke(main, ["run", str(path), "--launcher", "inline"], catch_exceptions=False)
    assert result.exit_code == 3
    assert f"alq: left to {there.claims.me.host}, process {there.claims.me.pid}, which runs it" in result.output
    assert {name: run.info.status for (name, _), run in runs_of(path).items()} == {"full_precision": "FINISHED"}


@pytest.mark.parametrize("status", ["KILLED", "FINISHED", "FAILED", None])
def test_what_another_launch_ends_meanwhile_is_looked_at_again(tmp_path, hasty, monkeypatch, status):
    path = write(tmp_path)
    there = Elsewhere(path, monkeypatch)
    if status:
        tags = {"lqray.trial_id": there.trial, "lqray.trial_name": "alq", "lqray.attempt": "1"}
        tags["lqray.folder"] = f"{tmp_path}/lqray-storage/small/{there.trial}"
        run = there.client.create_run(identifier(path), run_name="alq", tags=tags)

    def end():
        if status:
            there.client.set_terminated(run.info.run_id, status)
        there.claims.release(there.trial)

    with there.living(1.0, end):
        _, ran = launch(path)
    results = {result.named.name: result.status for result in ran.results}
    here = status in ("KILLED", None)
    assert results == {"full_precision": "FINISHED", **({"alq": "FINISHED"} if here else {})}
    assert not ran.elsewhere
    assert [named.name for named in ran.failed_elsewhere] == (["alq"] if status == "FAILED" else [])


class Robbed(Quiet):
    """Another launch takes a trial over when it first says something."""

    def __init__(self, path, monkeypatch):
        super().__init__()
        self.path, self.monkeypatch, self.there = path, monkeypatch, None

    def progressed(self, trial_id, report):
        if self.there is None and trial_id == trial_of(self.path, "alq"):
            with self.monkeypatch.context() as patched:
                patched.setattr(Claims, "_lives", lambda self, text: False)
                self.there = Elsewhere(self.path, self.monkeypatch)
            self.living = self.there.living()
            self.living.__enter__()
            self.files = sorted((self.path.parent / "lqray-storage/small" / trial_id).glob("*.pt"))
            # What its worker writes first, where the folder is its own.
            folder = self.path.parent / "lqray-storage/small" / trial_id
            (folder / "claim").write_text(f"{self.there.claims.board} {self.there.claims.number(trial_id)} 1")
            time.sleep(claims.HOLDER_PATIENCE)  # so long whoever takes over leaves one that may have proved its claim


def test_whoever_lost_a_trial_writes_nothing_more_of_it(tmp_path, hasty, monkeypatch):
    path = write(tmp_path)
    robbed = Robbed(path, monkeypatch)
    _, ran = launch(path, robbed)
    robbed.living.__exit__(None, None, None)
    run = runs_of(path)["alq", 1]
    assert run.info.status == "RUNNING"
    assert not any(step >= 30 for history in points(path, run).values() for step, _ in history)
    folder = tmp_path / "lqray-storage/small" / robbed.there.trial
    assert sorted(folder.glob("*.pt")) == robbed.files
    assert [named.name for named, _ in ran.elsewhere] == ["alq"]
    assert robbed.results["alq"] == "KILLED"
    assert "alq" not in {result.named.name for result in ran.results}
    assert Claims(store_of(path)[0], identifier(path), "x").claim(robbed.there.trial) == 0


def test_what_a_launch_was_killed_before_it_wrote_of_a_trial_is_written_by_the_next(tmp_path):
    """Between making a run and naming its parameters, or between those and its axes."""
    path = write(tmp_path)
    _, client = store_of(path)
    number = client.create_experiment("small", artifact_location=(tmp_path / "artifacts").as_uri())
    for named in read_experiment(path).trials():
        tags = {"lqray.trial_id": named.trial.id, "lqray.trial_name": named.name, "lqray.attempt": "1"}
        run_id = client.create_run(number, tags=tags, run_name=named.name).info.run_id
        if named.name == "alq":
            client.log_param(run_id, "optimizer.name", "sgd")
    launch(path)
    expected = {named.trial.id: named.trial.params() for named in read_experiment(path).trials()}
    for run in client.search_runs([number]):
        assert run.data.params == expected[run.data.tags["lqray.trial_id"]]
        assert run.data.metrics["varied/workers"] == 2.0
        assert len(client.get_metric_history(run.info.run_id, "varied/workers")) == 1
        assert run.info.status == "FINISHED"
