"""What an earlier lqray recorded goes on: a store with checkpoints of 2026-11-26 (commit ecb1512).

Two trials are finished, and their models were left to the next launch; one was interrupted after step 100 of 400.
finished.csv is the report of that lqray, after it went on itself.
"""

import csv
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main

KEPT = Path(__file__).parent / "data/kept.tar.xz"
INTERVALS = ("test/accuracy low", "test/accuracy high")
"""Of Student's t then, and beyond 100%; on the logit now."""
MEASURED = (*INTERVALS, "run_ids", "seconds_per_step")

pytestmark = pytest.mark.processes


def lqray(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def results(text: str, but: tuple[str, ...] = INTERVALS) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in but} for row in csv.DictReader(text.splitlines())]


def reported_as(earlier: str, but: tuple[str, ...] = INTERVALS) -> bool:
    """Whether the report has all columns of an earlier one, with its numbers; later versions have more."""
    now, then = results(lqray("report", "kept", "--format", "csv"), but), results(earlier, but)
    return [{key: row[key] for key in old} for row, old in zip(now, then, strict=True)] == then


def test_a_store_and_checkpoints_of_an_earlier_lqray_continue_and_report_alike(tmp_path, monkeypatch):
    with tarfile.open(KEPT) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "kept")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert reported_as(Path("report.csv").read_text())

    lqray("relocate")  # it was made in another folder
    assert "1 to continue, 2 finished before" in lqray("run", "kept.yaml", "--launcher", "inline")
    assert reported_as(Path("finished.csv").read_text(), MEASURED)
    client = MlflowClient(f"sqlite:///{tmp_path}/kept/lqray.db")
    runs = client.search_runs([client.get_experiment_by_name("kept").experiment_id])
    assert {run.data.tags["lqray.model"] for run in runs} == {"model"}
    assert {run.data.tags["lqray.attempt"] for run in runs} == {"1"}
    (continued,) = (run for run in runs if run.data.params["quantizer.method"] == "qsgd_inf")
    steps = [point.step for point in client.get_metric_history(continued.info.run_id, "test/loss")]
    assert steps == [100, 200, 300, 400]


def test_models_that_an_earlier_lqray_recorded_name_a_module_that_is_there():
    """MLmodel has its name, and MLflow imports it."""
    from lqray.orchestration import models
    from lqray.orchestration.recording import models as now

    assert models.load_model is now.load_model
    assert models._load_pyfunc is now._load_pyfunc
