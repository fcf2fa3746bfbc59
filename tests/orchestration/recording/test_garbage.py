"""`lqray gc`: what goes is what nothing needs, in a folder and in an object store."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.orchestration.recording import garbage as module
from lqray.training.storage import open_folder
from tests.testing.object_store import object_store, why_not

FILES = ["best.pt", "broken-step-0000000002.pt", "claim", "rank-0.log", "step-0000000008.pt", "step-0000000010.pt"]
TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 10, batch_size: 8}
  workers: 1
  quantizer: {method: sgd}
storage: {folder: "FOLDER"}
"""


class Store:
    def __init__(self, root: str):
        self.root, self.client = root, MlflowClient(f"sqlite:///{Path.cwd()}/lqray.db")
        self.experiment = self.client.create_experiment("sweep")
        self.folders: dict[str, str] = {}

    def run(self, trial: str, status: str, attempt: int = 1, names=tuple(FILES), folder: str = "", **tags: str) -> str:
        folder = folder or f"{self.root}/sweep/{trial}" + (f"-{attempt}" if attempt > 1 else "")
        known = {"trial_id": trial, "trial_name": f"name-{trial}", "attempt": str(attempt), "folder": folder} | tags
        found = self.client.create_run(self.experiment, tags={f"lqray.{key}": value for key, value in known.items()})
        self.client.set_terminated(found.info.run_id, status) if status != "RUNNING" else None
        for name in names:
            open_folder(folder).write(name, name.encode())
        self.folders[f"{trial} {attempt}"] = folder
        return found.info.run_id

    def names(self, trial: str, attempt: int = 1) -> list[str]:
        return open_folder(self.folders[f"{trial} {attempt}"]).names("*")


def lqray(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["gc", *arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Store(str(tmp_path / "storage"))


def filled(store: Store) -> None:
    for number, status in enumerate(("RUNNING", "KILLED", "FAILED")):
        store.run(f"aaaa{number}", status)
    store.run("dddd0", "FINISHED")
    store.run("dddd1", "KILLED", early="NaN")
    store.run("dddd2", "FINISHED", model="pending")
    store.run("dddd3", "FINISHED", model="failed: x")
    store.run("dddd4", "FINISHED", names=FILES[1:])
    store.run("eeee0", "FINISHED")
    store.run("eeee0", "FINISHED", attempt=2)
    store.run("eeee1", "FAILED")
    store.run("eeee1", "KILLED", attempt=2)
    store.run("eeee2", "RUNNING")
    store.run("eeee2", "FINISHED", attempt=2)


STAYS = ["best.pt", "broken-step-0000000002.pt", "claim", "rank-0.log"]


def check(store: Store) -> None:
    for trial in ("aaaa0", "aaaa1", "aaaa2", "dddd2", "dddd3"):
        assert store.names(trial) == FILES, trial
    assert store.names("dddd0") == store.names("dddd1") == STAYS
    assert store.names("dddd4") == [*STAYS[1:], FILES[-1]]
    assert store.names("eeee0") == STAYS[1:]
    assert store.names("eeee0", 2) == STAYS
    assert store.names("eeee1") == store.names("eeee1", 2) == FILES
    assert store.names("eeee2") == FILES
    assert store.names("eeee2", 2) == STAYS


def test_what_is_over_goes_and_what_is_needed_stays(store):
    filled(store)
    shown = lqray("sweep")
    assert "name-dddd0" in shown
    assert "step-0000000010.pt, step-0000000008.pt" in shown
    assert "name-aaaa" not in shown
    assert store.names("dddd0") == FILES
    line = shown.splitlines()[-1]
    assert line.startswith("Nothing was removed. To remove it:")
    assert line.endswith("gc sweep --yes")
    size = sum(len(name) for name in FILES[-2:])
    freed = size * 4 + len(FILES[-1]) + size + len("best.pt")
    assert f" {freed:,} " in shown
    assert f"Removed {freed:,} bytes." in lqray("sweep", "--yes")
    check(store)
    assert lqray("sweep", "--yes").startswith("Nothing to remove")


def test_with_a_file_its_folder_is_looked_into(store, tmp_path):
    filled(store)
    Path("sweep.yaml").write_text(TEXT.replace("FOLDER", str(tmp_path / "elsewhere")))
    assert lqray("sweep.yaml").startswith("Nothing to remove")
    (tmp_path / "storage").rename(tmp_path / "elsewhere")  # its project was moved
    assert lqray("sweep").startswith("Nothing to remove")
    assert lqray("sweep.yaml").splitlines()[-1].endswith("gc sweep.yaml --yes")
    lqray("sweep.yaml", "--yes")
    store.folders = {key: one.replace("/storage/", "/elsewhere/") for key, one in store.folders.items()}
    check(store)


def test_what_was_set_aside_goes_only_when_asked_for(store):
    store.run("dddd0", "FINISHED", names=[*FILES, "foreign-ab-step-0000000004.pt", "unused-ab-best.pt", "my.pt"])
    assert lqray("sweep", "--all").splitlines()[-1].endswith("gc sweep --all --yes")
    lqray("sweep", "--all", "--yes")
    assert store.names("dddd0") == ["best.pt", "claim", "my.pt", "rank-0.log"]


def test_tags_lead_to_no_folder_of_others(store, tmp_path):
    store.run("dddd0", "FINISHED", folder=str(tmp_path / "storage/other/dddd0"))
    store.run("dddd1", "FINISHED", folder=str(tmp_path / "storage/sweep/aaaa0"))
    assert lqray("sweep", "--yes").startswith("Nothing to remove")
    assert store.names("dddd0") == store.names("dddd1") == FILES


def test_what_a_launch_takes_up_meanwhile_keeps_everything(store, monkeypatch):
    run_id = store.run("dddd0", "FINISHED")
    found = module.garbage

    def and_then(*arguments):
        chosen = found(*arguments)
        store.client.update_run(run_id, status="RUNNING")
        return chosen

    monkeypatch.setattr(module, "garbage", and_then)
    said = lqray("sweep", "--yes")
    assert "name-dddd0: a launch has taken it up meanwhile; nothing of it was removed" in said
    assert store.names("dddd0") == FILES


def test_an_experiment_that_there_is_not(store):
    assert "other" in lqray("other", code=2)


@pytest.mark.processes
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_in_an_object_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with object_store(tmp_path) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        store = Store("s3://bucket/mine")
        filled(store)
        lqray("sweep", "--yes")
        check(store)


def test_a_finished_trial_is_finished_before_and_can_be_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LQRAY_STORAGE", str(tmp_path / "storage"))
    Path("sweep.yaml").write_text(TEXT.replace('storage: {folder: "FOLDER"}', ""))
    run = lambda *more: CliRunner().invoke(main, ["run", "sweep.yaml", "--launcher", "inline", *more])  # noqa: E731
    assert run().exit_code == 0
    lqray("sweep.yaml", "--yes")
    assert [one.name for one in tmp_path.glob("storage/sweep/*/*.pt")] == ["best.pt"]
    again = run()
    assert again.exit_code == 0
    assert "1 finished before" in again.output
    assert run("--rerun").exit_code == 0
    lqray("sweep.yaml", "--yes")
    assert [f"{one.parent.name[-2:]}/{one.name}" for one in tmp_path.glob("storage/sweep/*/*.pt")] == ["-2/best.pt"]
