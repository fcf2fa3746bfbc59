"""What MLflow has of a sweep: docs/guide/tracking.md, on a real one."""

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import lqray
from lqray.experiment.grid import read_experiment
from lqray.experiment.schema import Trial
from lqray.orchestration import provenance
from lqray.orchestration.doctor import local
from lqray.orchestration.doctor.local import Finding
from lqray.orchestration.launch import Presentation, run_plan
from lqray.orchestration.plan.plan import RunOptions, make_plan
from lqray.orchestration.recording import derived as derived_module
from lqray.orchestration.recording import launch_files as launch_files_module
from lqray.orchestration.recording import recorder as recorder_module
from lqray.orchestration.recording.artifacts import ArtifactWriter
from lqray.orchestration.recording.datasets import dataset_inputs
from lqray.orchestration.recording.derived import DerivedArtifacts
from lqray.orchestration.recording.description import axis_metrics, has_axes, run_colour, trial_description
from lqray.orchestration.recording.launch_files import LaunchFiles
from lqray.orchestration.recording.models import load_model
from lqray.orchestration.worker.reporter import Reporter
from lqray.orchestration.worker.task import Outcome
from lqray.reporting.figures.density import draw_density
from lqray.reporting.summary import sweep_summary
from lqray.training.export import trained_network
from lqray.training.levels import LevelHistory
from lqray.training.reports import Report
from tests.testing.reporters import Link, task

TEXT = """# Are two bits enough?
name: tracked
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 40, batch_size: 16, evaluate_every: 20}
  workers: 2
  quantizer: {method: alq, bucket_size: 128, update_at: [0, 5]}
  telemetry: {every: 5}
sweep:
  - matrix: {quantizer.bits: [2, 3]}
  - matrix: {quantizer.method: [full_precision], optimizer.lr: [0.1, 1.0e+30]}
resources: {processes: 1}
"""


class Silent:
    def started(self, named, continued): ...
    def progressed(self, trial_id, report): ...
    def retrying(self, named, failure, seconds): ...
    def moving(self, named, why): ...
    def ended(self, result): ...


def launch(path: Path, **options):
    experiment = read_experiment(path)
    chosen = RunOptions("inline", **options)
    plan = make_plan(experiment, chosen)
    shown = Presentation(sweep_summary, draw_density, local.machine)
    return plan, run_plan(plan, chosen, Silent(), shown)


def described(client: MlflowClient) -> str:
    return client.get_experiment_by_name("tracked").tags["mlflow.note.content"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """(client, runs by name, results by name, the description after half of the sweep)."""
    folder = tmp_path_factory.mktemp("tracked")
    path = folder / "tracked.yaml"
    where = f"tracking: {{uri: 'sqlite:///{folder}/runs.db', log_model: true}}\nstorage: {{folder: {folder}/storage}}\n"
    path.write_text(TEXT + where)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recorder_module, "FIGURE_SECONDS", 0.0)  # of trials that take a second, too
        plan, first = launch(path, limit=2)
        client = MlflowClient(plan.uri)
        half = described(client)
        results = {result.named.name: result for result in [*first.results, *launch(path)[1].results]}
    found = client.search_runs([client.get_experiment_by_name("tracked").experiment_id])
    return client, {run.info.run_name: run for run in found}, results, half


def names(tracked) -> dict[str, str]:
    """Short names to those of the runs."""
    keys = {}
    for name, run in tracked[1].items():
        method, bits = run.data.params["quantizer.method"], run.data.params.get("quantizer.bits", "")
        keys[f"{method}{bits}" + ("-failed" if run.info.status == "FAILED" else "")] = name
    assert sorted(keys) == ["alq2", "alq3", "full_precision", "full_precision-failed"]
    return keys


def test_the_description_is_current_after_every_launch(tracked):
    client, *_, half = tracked
    assert half.startswith("> Are two bits enough?")
    assert "**4 trials**: 2 finished, 2 not begun" in half
    whole = described(client)
    assert "**4 trials**: 3 finished, 1 failed" in whole
    best = max(tracked[2][names(tracked)[key]].metrics["test/accuracy"] for key in ("alq2", "alq3"))
    assert f"- **alq** {best:.2%}: `" in whole
    assert "- **full_precision** " in whole


def test_a_run_says_what_it_is_and_has_numeric_axes(tracked):
    run = tracked[1][names(tracked)["alq2"]]
    assert len({one.data.tags["mlflow.runColor"] for one in tracked[1].values()}) == 4
    note = run.data.tags["mlflow.note.content"]
    assert note == "**alq**, 2 bits, bucket 128, seed 1: mlp-16 on digits, 2 workers, 40 iterations"
    axes = {key: value for key, value in run.data.metrics.items() if key.startswith("varied/")}
    wanted = {"quantizer.bits": 2, "optimizer.lr": 0.1, "quantizer.bucket_size": 128, "workers": 2}
    assert axes == {f"varied/{key}": value for key, value in wanted.items()}
    assert [one.step for one in tracked[0].get_metric_history(run.info.run_id, "varied/quantizer.bits")] == [0]


def artifacts(client: MlflowClient, run) -> dict[str, Path]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}


def test_artifacts(tracked):
    client, runs, results, _ = tracked
    chosen = {key: artifacts(client, runs[name]) for key, name in names(tracked).items()}
    shared = {"experiment.yaml", "trial.yaml", "doctor.txt", "requirements.txt"}
    for key, files in chosen.items():
        expected = shared | ({"density.json", "density.png", "levels.json"} if key.startswith("alq") else set())
        expected |= {"traceback.txt"} if key.endswith("failed") else set()
        assert set(files) - {"git.diff"} == expected
    assert "operators on cpu" in chosen["alq2"]["doctor.txt"].read_text()
    assert f"torch=={torch.__version__}" in chosen["alq2"]["requirements.txt"].read_text()
    # Links to one file for each launch.
    same = [chosen["alq2"]["doctor.txt"].samefile(chosen[key]["doctor.txt"]) for key in chosen]
    assert dict(zip(chosen, same, strict=True)) == {key: key.startswith("alq") for key in chosen}
    snapshot = json.loads(chosen["alq3"]["density.json"].read_text())
    assert np.dot(snapshot["density"], np.diff(snapshot["edges"])) == pytest.approx(1.0)
    assert results[names(tracked)["alq3"]].snapshot is None
    assert (snapshot["bits"], snapshot["iteration"], len(snapshot["levels"])) == (3, 40, 8)
    assert chosen["alq3"]["density.png"].read_bytes().startswith(b"\x89PNG")


def test_levels_are_a_file_and_no_metrics(tracked):
    client, runs, results, _ = tracked
    run = runs[names(tracked)["alq3"]]
    levels = json.loads(artifacts(client, run)["levels.json"].read_text())["series"]["quantizer/level"]
    assert levels["steps"] == [1, 6, 11, 16, 21, 26, 31, 36]
    assert levels["rows"] == [0, *[1] * 7]  # fitted at 0 and 5
    assert [len(row) for row in levels["values"]] == [8, 8]
    snapshot = json.loads(artifacts(client, run)["density.json"].read_text())
    assert levels["values"][-1] == snapshot["levels"]
    assert not [key for key in run.data.metrics if "level" in key]
    assert {"quantizer/nmse", "quantizer/mean_nmse", "quantizer/multiplier"} & set(run.data.metrics)
    assert results[names(tracked)["alq3"]].levels is None


def test_levels_are_written_while_a_trial_runs(tmp_path, monkeypatch):
    """Here alone: its end writes none."""
    import lqray.orchestration.worker.reporter as worker

    monkeypatch.setattr(worker, "_LEVELS_SECONDS", 0.0)
    monkeypatch.setattr(ArtifactWriter, "end", lambda *_: None)
    path = tmp_path / "tracked.yaml"
    path.write_text(TEXT.split("sweep:")[0] + "tracking: {uri: 'sqlite:///lqray.db'}\nresources: {processes: 1}\n")
    monkeypatch.chdir(tmp_path)
    options = RunOptions(launcher="inline")
    run_plan(make_plan(read_experiment(path), options), options, Silent())
    (file,) = tmp_path.rglob("levels.json")
    assert json.loads(file.read_text())["series"]["quantizer/level"]["steps"] == [1, 6, 11, 16, 21, 26, 31, 36]
    assert not list(tmp_path.rglob("*.partial"))


def test_datasets_and_system_metrics(tracked):
    client, runs, *_ = tracked
    for run in runs.values():
        inputs = run.inputs.dataset_inputs
        assert [(one.dataset.name, json.loads(one.dataset.profile), one.tags[0].value) for one in inputs] == [
            ("digits", {"num_rows": 1437}, "train"),
            ("digits", {"num_rows": 360}, "test"),
        ]
    run = runs[names(tracked)["alq3"]]
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert [one.step for one in client.get_metric_history(run.info.run_id, "system/disk_usage_percentage")] == [40]
    assert "system/cpu_utilization_percentage" not in tracked[2][run.info.run_name].metrics


def test_the_model_is_that_of_the_last_checkpoint(tracked):
    client, runs, results, _ = tracked
    for key, name in names(tracked).items():
        assert runs[name].data.tags.get("lqray.model") == (None if key.endswith("failed") else "model")
    run = runs[names(tracked)["alq3"]]
    loaded = load_model(f"runs:/{run.info.run_id}/model", client.tracking_uri)
    trained, _ = trained_network(results[run.info.run_name].named.trial, run.data.tags["lqray.folder"])
    inputs = torch.randn(7, 1, 8, 8)
    assert torch.equal(loaded(inputs), trained(inputs))
    assert [one.step for one in client.get_metric_history(run.info.run_id, "test/accuracy")] == [20, 40]


def test_a_model_that_a_killed_launch_left_pending_is_made_by_the_next(tracked):
    client, runs, *_ = tracked
    run = runs[names(tracked)["alq2"]]
    client.set_tag(run.info.run_id, "lqray.model", "pending")
    path = Path(run.data.tags["lqray.folder"]).parents[2] / "tracked.yaml"
    launch(path, only=(run.info.run_name,))
    assert client.get_run(run.info.run_id).data.tags["lqray.model"] == "model"


def test_a_run_that_goes_on_has_the_files_of_both_launches(tracked):
    client, runs, *_ = tracked
    run = runs[names(tracked)["full_precision-failed"]]
    path = Path(run.data.tags["lqray.folder"]).parents[2] / "tracked.yaml"
    _, ran = launch(path)
    files = artifacts(client, run)
    assert f"launches/{ran.launch.launch_id}/doctor.txt" in files
    assert "doctor.txt" in files


def test_elsewhere_the_launchs_files_go_up_once_and_others_name_that_run(monkeypatch):
    monkeypatch.setattr(launch_files_module, "launch_files", lambda uri: {"doctor.txt": "x"})
    uploaded, tags = {}, {}

    class Client:
        def log_artifacts(self, run_id, folder):
            uploaded[run_id] = sorted(file.name for file in Path(folder).iterdir())

        def set_tag(self, run_id, key, value):
            tags[run_id] = (key, value)

    files = LaunchFiles("http://server")
    for number in "123":
        run = SimpleNamespace(info=SimpleNamespace(run_id=number, artifact_uri=f"mlflow-artifacts:/{number}"))
        files.give(Client(), run, {"trial.yaml": number})
    assert uploaded == {"1": ["doctor.txt", "trial.yaml"], "2": ["trial.yaml"], "3": ["trial.yaml"]}
    assert tags == dict.fromkeys("23", ("lqray.launch_files", "1"))


def test_a_link_whose_first_file_is_gone_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(launch_files_module, "launch_files", lambda uri: {"doctor.txt": "x"})
    files = LaunchFiles("sqlite://")
    for number in "123":
        place = tmp_path / number
        run = SimpleNamespace(info=SimpleNamespace(run_id=number, artifact_uri=place.as_uri()))
        files.give(None, run, {})
        assert (place / "doctor.txt").read_text() == "x"
        if number == "2":
            (tmp_path / "1" / "doctor.txt").unlink()


def test_passwords_stay_out_of_the_files_of_a_launch(monkeypatch):
    said = Finding("MLflow store", "ok", "postgresql://user:secret@127.0.0.1:1/lqray: 3 experiments")
    monkeypatch.setattr(local, "examine", lambda uri: [said])
    assert "user:***@127.0.0.1" in local.machine("")
    assert "secret" not in local.machine("")
    made = launch_files_module.launch_files(f"{said}\n{said.found}")
    assert "secret" not in made["doctor.txt"]


def test_git_diff_has_what_git_does_not_know_and_is_cut_when_long(tmp_path, monkeypatch):
    (tmp_path / "lqray").mkdir()
    known = tmp_path / "lqray" / "__init__.py"
    known.write_text("a = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    monkeypatch.setattr(lqray, "__file__", str(known))
    assert provenance.code_changes() == ""
    known.write_text("a = 2\n")
    (tmp_path / "lqray" / "new.py").write_text("b = 1\n")
    changes = provenance.code_changes()
    assert "-a = 1\n+a = 2\n" in changes
    assert "+b = 1\n" in changes
    (tmp_path / "lqray" / ".env").write_text("PASSWORD=hidden\n")
    assert provenance.code_changes() == changes
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert "?? lqray/new.py" in status  # the index is as it was
    known.write_text("c = 3\n" * 400_000)
    cut = launch_files_module.launch_files("")["git.diff"]
    assert len(cut) < 2**20 + 200
    assert "[cut by lqray after 1 MiB; the whole diff has" in cut


def test_system_metrics_are_sampled_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    import lqray.orchestration.worker.reporter as worker

    clock = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    link = Link()
    told = task(tmp_path)
    reporter = Reporter(worker.replace(told, system_metrics=True), link, lambda line: None)
    for step, now in enumerate((1.0, 9.9, 10.0, 15.0, 21.0, 22.0), 1):
        clock[0] = now
        reporter.report(Report(step, 6, {"a": 1.0}, evaluated=True, final=step == 6))
    sampled = [point.step for point in link.sent if any(key.startswith("system/") for key in point.metrics)]
    assert sampled == [3, 5, 6]
    quiet = Link()
    Reporter(told, quiet, lambda line: None).report(Report(1, 1, {"a": 1.0}, evaluated=True, final=True))
    assert quiet.sent[0].metrics == {"a": 1.0}


def test_a_machine_that_does_not_show_itself_costs_no_trial(tmp_path, monkeypatch):
    import lqray.orchestration.worker.reporter as worker

    def hidden(self):
        raise OSError("/proc is not there")

    monkeypatch.setattr(worker.SystemMetrics, "sample", hidden)
    link, said = Link(), []
    Reporter(worker.replace(task(tmp_path), system_metrics=True), link, said.append).report(
        Report(1, 1, {"a": 1.0}, final=True, evaluated=True)
    )
    assert [point.metrics for point in link.sent] == [{"a": 1.0}]
    assert "no more system metrics: OSError" in said[0]


def test_what_is_seen_of_a_trial_is_told_however_it_ends(tmp_path):
    reporter = Reporter(task(tmp_path), Link(), lambda line: None)
    reporter.report(Report(1, 2, {"a": 1.0}, examples=(10, 5)))
    assert Outcome(**reporter.seen) == Outcome(examples=(10, 5))
    reporter.report(Report(2, 2, {"a": 1.0}, final=True, snapshot={"levels": []}, examples=(10, 5)))
    assert reporter.seen["snapshot"] == {"levels": []}


def test_levels_are_told_seldom_and_at_the_end_and_are_no_points(tmp_path, monkeypatch):
    import lqray.orchestration.worker.reporter as worker

    clock = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    link, history = Link(), LevelHistory()
    told: list[dict | None] = []
    monkeypatch.setattr(link, "send", lambda update: (told.append(update.levels), link.sent.extend(update.points)))
    reporter = Reporter(task(tmp_path), link, lambda line: None)
    for step, now in enumerate((10.0, 61.0, 70.0), 1):
        clock[0] = now
        metrics = {"quantizer/level/0": float(step), "test/loss": 1.0}
        history.add(step, metrics)
        reporter.report(Report(step, 9, metrics, evaluated=True, levels=history))
    assert [point.metrics for point in link.sent] == [{"test/loss": 1.0}] * 3
    steps = [one and one["series"]["quantizer/level"]["steps"] for one in told]
    assert steps == [None, [1, 2], None]
    history.add(4, {"quantizer/level/0": 4.0})  # and then it is stopped
    assert reporter.seen["levels"]["series"]["quantizer/level"]["steps"] == [1, 2, 3, 4]


def plain(**changes) -> Trial:
    config = {
        "data": {"name": "cifar10"},
        "model": {"name": "resnet", "depth": 20},
        "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True, "momentum": 0.9},
        "schedule": {"iterations": 64000, "batch_size": 32},
        "workers": 4,
        "quantizer": {"method": "alq"},
    }
    return Trial.model_validate(config | changes)


def test_descriptions():
    assert (
        trial_description(plain())
        == "**alq**, 3 bits, bucket 8192, seed 1: resnet-20 on cifar10, 4 workers, 64000 iterations"
    )
    other = plain(
        model={"name": "torchvision", "architecture": "resnet18"},
        quantizer={"method": "sgd"},
        schedule={"epochs": 3, "batch_size": 1},
    )
    assert trial_description(other) == "**sgd**, seed 1: resnet18 on cifar10, 1 worker, 3 epochs"
    budget = plain(quantizer={"method": "alq", "bits": {"fc.*": 8, "default": 3}})
    assert trial_description(budget).startswith("**alq**, bits by parameter (fc.*: 8, default: 3), bucket 8192, seed 1")
    assert "varied/quantizer.bits" not in axis_metrics(budget, ["quantizer.bits"])
    assert len({run_colour(number) for number in range(200)}) == 200
    assert all(re.fullmatch("#[0-9a-f]{6}", run_colour(number)) for number in range(20))
    found = axis_metrics(plain(), ("optimizer.nesterov", "data.name", "schedule.decay_at", "optimizer.lr"))
    wanted = {"optimizer.nesterov": 1.0, "optimizer.lr": 0.1, "quantizer.bits": 3.0, "quantizer.bucket_size": 8192.0}
    assert found == {f"varied/{key}": value for key, value in (wanted | {"workers": 4.0}).items()}
    assert [has_axes(one) for one in (found, {"axis/workers": 4.0}, {"test/loss": 0.1})] == [True, True, False]


def test_a_digest_is_of_what_a_trial_sees():
    def digests(examples=(100, 10), **options):
        data = plain(data={"name": "cifar10", **options}).data
        return [one.dataset.digest for one in dataset_inputs(data, examples)]

    assert digests(root="/elsewhere", download=True) == digests()
    assert len({*digests(), *digests(augmentation="none"), *digests((50, 10))}) == 5


def fails(snapshots):
    if snapshots[0][0] == "killed":
        os._exit(9)
    raise ValueError("no figure today")


def test_a_figure_that_fails_costs_no_other(tmp_path, caplog):
    uri = f"sqlite:///{tmp_path}/runs.db"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("e", (tmp_path / "a").as_uri())).info.run_id
    made = DerivedArtifacts(uri, fails)
    made.density(run_id, "raises", {})
    made.density(run_id, "killed", {})
    made.model(run_id, tmp_path, plain().config())
    assert made.close(600) == 0  # seconds, of which it needs ten
    assert [record.message.partition(" is not recorded: ")[2][:21] for record in caplog.records] == [
        "ValueError: no figure",
        "its process ended 2 t",
        "CheckpointError: " + str(tmp_path)[:4],
    ]
    assert client.get_run(run_id).data.tags["lqray.model"].startswith("failed: CheckpointError: ")
    assert derived_module.DerivedArtifacts(uri).close(0) == 0
