"""Data that are missing stop a launch before its first trial, with one error, and not trial after trial."""

import re

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.grid import experiment_from_text
from lqray.experiment.schema import data_options
from lqray.orchestration.launchers.ray import nodes_data
from lqray.orchestration.launchers.ray.nodes_data import judge, problems_here
from lqray.orchestration.plan.data import check_data
from tests.testing.dataset_files import write_idx

SWEEP = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.02}
  schedule: {iterations: 2, batch_size: 8}
  quantizer: {method: full_precision}
sweep:
  - include:
      - {seed: 1}
      - {seed: 2, data: {name: mnist}}
      - {seed: 3, data: {name: mnist}}
      - {seed: 4, data: {name: svhn, extra: false}}
resources: {processes: 1}
"""


def lqray(*arguments: str):
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LQRAY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


@pytest.mark.parametrize("launcher", ["inline", "warm"])
def test_a_launch_says_once_what_is_missing_and_begins_nothing(folder, launcher):
    """Before, three of the four trials failed, each with its error."""
    done = lqray("run", "sweep.yaml", "--launcher", launcher)
    assert done.exit_code == 2, done.output
    assert re.search(r"Error: trial seed2-mnist\S* and 1 more: dataset mnist: not found", done.output)
    assert done.output.count("dataset mnist") == done.output.count("dataset svhn") == 1
    assert str(folder / "data") in done.output
    assert "LQRAY_DATA" in done.output
    assert "No trial was begun." in done.output
    assert not (folder / "lqray.db").exists()


def test_a_dry_run_says_what_a_launch_here_would_refuse(folder):
    done = lqray("run", "sweep.yaml", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "4 would run" in done.output
    assert done.output.count("would be refused here now: trial seed") == 2
    write_idx(folder / "data")
    assert lqray("run", "sweep.yaml", "--dry-run").output.count("would be refused") == 1
    assert "refused" not in lqray("run", "sweep.yaml", "--dry-run", "--only", "seed[123]*").output


def test_the_doctor_of_a_file_says_of_each_of_its_data_how_it_is(folder):
    done = lqray("doctor", "sweep.yaml")
    assert done.exit_code == 1
    assert "ok      data                digits: 1,437 training examples" in done.output
    assert re.search(r"BROKEN  data +dataset mnist: not found\n", done.output)
    assert re.search(r"needed by: trial seed2-mnist\S* and 1 more\n +remedy: ", done.output)
    assert done.output.count("BROKEN") == 2
    write_idx(folder / "data")
    assert lqray("doctor", "sweep.yaml").output.count("BROKEN") == 1
    assert sorted(one.name for one in folder.iterdir()) == ["data", "sweep.yaml"]


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        (("batch_size: 8", "batch_size: 5000"), "trials", "schedule.batch_size: found 5000"),
        (("model: {name: mlp, layers: [8]}", "model: {name: 'nowhere:build'}"), "trials", "nowhere"),
        (("processes: 1", "processes: 1, memory_gib_per_process: 999999"), "resources", "999,999 GiB"),
        (("processes: 1}", "processes: 1}\nstorage: {folder: /dev/null/x}"), "storage", "/dev/null"),
        (("processes: 1}", "processes: 1}\ntracking: {uri: 'sqlite:////nowhere/x.db'}"), "MLflow store", "/nowhere"),
    ],
)
def test_the_doctor_of_a_file_says_what_else_would_stop_it(folder, change, what, said):
    text = SWEEP.replace(*change)
    (folder / "sweep.yaml").write_text(re.sub(r"      - \{seed: [234].*\n", "", text))
    done = lqray("doctor", "sweep.yaml")
    assert done.exit_code == 1, done.output
    (broken,) = re.findall(r"BROKEN  ([\w ]+?)  +((?s:.*?)remedy: .+)", done.output)
    assert broken[0] == what
    assert said in broken[1]


def test_the_doctor_does_not_judge_a_clusters_data_from_here(folder, monkeypatch):
    monkeypatch.setattr("lqray.orchestration.doctor.experiment.runs_elsewhere", lambda launcher: True)
    done = lqray("doctor", "sweep.yaml")
    assert done.exit_code == 0, done.output
    assert done.output.count("slow    data") == 2
    assert "--cluster" in done.output


def test_only_data_that_no_node_has_are_refused(monkeypatch, caplog):
    judge({"a": ["", "missing"], "b": ["", ""]})
    assert "1 of 2 nodes lack data: trials placed there will fail. On a: missing" in caplog.text
    judge({"a": ["", "missing"], "b": None})
    judge({"a": None})
    judge({})
    with pytest.raises(UnfitTrialError, match=r"every node that could run a trial \(a, b\): missing(?s:.)*No trial"):
        judge({"a": ["", "missing"], "b": ["", "missing"]})
    monkeypatch.setattr(nodes_data, "limit_said", lambda: True)
    judge({"a": ["", "missing"], "b": ["", "missing"]})


def test_a_node_looks_at_its_own_folder(tmp_path, monkeypatch):
    data = [data_options({"name": "mnist"}), data_options({"name": "mnist", "download": True})]
    monkeypatch.setenv("LQRAY_DATA", str(tmp_path / "none"))
    missing, fetched = problems_here(data)
    assert "not found" in missing
    assert not fetched
    write_idx(tmp_path / "data")
    monkeypatch.setenv("LQRAY_DATA", str(tmp_path / "data"))
    assert problems_here(data) == ["", ""]


def test_a_launch_downloads_once_what_its_trials_would(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("lqray.orchestration.plan.data.look_at_data", lambda *given: asked.append(given))
    check_data(experiment_from_text(SWEEP, "sweep.yaml").trials())
    assert [(options.name, fetch) for options, fetch in asked] == [("digits", True), ("mnist", True), ("svhn", True)]
