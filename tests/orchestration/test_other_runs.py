"""Records and checkpoints do not mix: a new run goes on from no other run's checkpoint, and says what it found."""

import hashlib
import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from rich.console import Console

from lqray.cli import main
from lqray.cli.progress import Progress
from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Trial
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.launchers.outcomes import result_of
from lqray.orchestration.worker.reporter import Reporter
from lqray.orchestration.worker.task import Ack, Outcome
from lqray.reporting.records import read_records
from lqray.training.reports import Report
from tests.testing.reporters import task
from tests.testing.sweeps import recorded, write

TEXT = """
name: sweep
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 30, batch_size: 16, evaluate_every: 10, on_nonfinite: skip}
  workers: 2
  quantizer: {method: alq, bits: 3, bucket_size: 64, components: 5, update_at: [0, 10]}
sweep:
  - matrix: {optimizer.lr: [0.05, 1.0e+30]}
storage: {folder: storage, checkpoint_every: 10}
tracking: {figures: false}
resources: {processes: 1}
"""


def contents(folder: Path) -> set[str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.pt")}


def swept(path: Path, *options: str) -> str:
    """What `lqray run` says, in this process."""
    done = CliRunner().invoke(main, ["run", path.name, "--launcher", "inline", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_new_store_is_a_new_run_and_what_diverged_ends_in_nan(tmp_path, monkeypatch):
    path, uri = write(tmp_path, text=TEXT), f"sqlite:///{tmp_path}/lqray.db"
    monkeypatch.chdir(tmp_path)
    swept(path)
    found = {one.params["optimizer.lr"]: one for one in read_records(uri, "sweep")}
    assert {one.status for one in found.values()} == {"FINISHED"}
    for name in ("test/loss", "train/loss"):
        assert math.isnan(found["1e+30"].metrics[name])
        assert found["0.05"].metrics[name] < 2
    assert math.isfinite(found["1e+30"].metrics["quantizer/mean_nmse"])
    assert found["1e+30"].metrics["quantizer/mean_nmse_left_out"] > 0
    shown = CliRunner().invoke(
        main, ["report", "sweep", "--uri", uri, "--metric", "train/loss", "--group-by", "seed", "--format", "markdown"]
    )
    assert "1 of 2 (1 not finite)" in shown.output

    before = contents(tmp_path / "storage")
    for spool in tmp_path.rglob("undelivered.jsonl"):  # whose points are not what this is about
        spool.unlink()
    other = f"sqlite:///{tmp_path}/other.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = swept(path, "--set", "tracking.uri=sqlite:///other.db")
    client = MlflowClient(other)
    assert len(recorded(other)) == 2
    for one in recorded(other).values():
        assert [point.step for point in client.get_metric_history(one.info.run_id, "test/accuracy")] == [10, 20, 30]
        folder = Path(one.data.tags["lqray.folder"])
        assert not list(folder.glob("foreign-*")) or "is not continued from" in text
    assert before <= contents(tmp_path / "storage")


class Link:
    def __init__(self):
        self.updates = []

    def send(self, update):
        self.updates.append(update)

    def acknowledged(self):
        return Ack()

    def close(self): ...


def test_remarks_reach_the_launch_once_though_reports_are_many(tmp_path):
    link = Link()
    reporter = Reporter(task(tmp_path), link, lambda line: None)
    reporter._shown = math.inf
    reporter.report(Report(1, 9, {"a": 1.0}, remarks=("one",)))
    reporter.report(Report(2, 9, {"a": 1.0}, remarks=("two",)))
    assert not link.updates
    reporter.report(Report(3, 9, {"a": 1.0}, evaluated=True))
    reporter.report(Report(4, 9, {"a": 1.0}, evaluated=True))
    assert [update.report.remarks for update in link.updates] == [("one", "two"), ()]


def test_a_metric_that_was_measured_before_the_checkpoint_is_not_missed(tmp_path):
    """Early stopping goes by train/loss, which is measured less often than the trial is evaluated."""
    wanted = replace(task(tmp_path), needed_metric="train/loss")
    evaluation = Report(70, 90, {"test/loss": 1.0}, evaluated=True)
    for again in (replace(wanted, continued=True), replace(wanted, start=2)):
        Reporter(again, Link(), lambda line: None).report(evaluation)
    with pytest.raises(ValueError, match="no metric 'train/loss' is reported"):
        Reporter(wanted, Link(), lambda line: None).report(evaluation)


TRIAL = Trial.model_validate(
    {
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 9, "batch_size": 16},
        "quantizer": {"method": "alq"},
    }
)


def test_the_launch_says_remarks():
    console = Console(record=True, width=60)
    with Progress(console, 1) as progress:
        progress.started(NamedTrial("n", TRIAL), True)
        progress.progressed(TRIAL.id, Report(1, 9, {}, remarks=("step-10.pt is of run a, this is run b",)))
    assert "n: step-10.pt is of run a, this is run b" in console.export_text()


def test_metrics_that_ended_as_nan_are_known_however_a_trial_ends(tmp_path):
    reporter = Reporter(task(tmp_path), Link(), lambda line: None)
    reporter.report(Report(1, 9, {"a": math.nan}, lost=("a",)))

    class Work:
        named, run_id = NamedTrial("n", TRIAL), "r"

    for outcome in (Outcome(**reporter.seen), Outcome(stopped="", **reporter.seen)):
        result = result_of(Work(), {0: outcome}, None)
        assert isinstance(result, TrialResult)
        assert result.lost == ("a",)
