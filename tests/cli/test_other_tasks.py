"""What a sweep of another task than classification says of itself: its own headline, in the right direction."""

import json

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.orchestration import origins

FILE = {
    "name": "straight",
    "base": {
        "data": {"name": "linear", "dimension": 8, "train_size": 200, "test_size": 100},
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd"},
        "schedule": {"iterations": 20, "batch_size": 10, "evaluate_every": 10},
        "quantizer": {"method": "full_precision"},
    },
    "sweep": [{"matrix": {"optimizer.lr": [0.001, 0.3]}}],
}


@pytest.mark.processes
def test_a_regression_is_judged_by_its_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "straight.yaml").write_text(json.dumps(FILE))
    done = CliRunner().invoke(main, ["run", "straight.yaml", "--launcher", "inline"])
    assert done.exit_code == 0, done.output
    assert done.output.count(", test loss 0.") == 2
    assert "accuracy" not in done.output
    experiment = MlflowClient(f"sqlite:///{tmp_path}/lqray.db").get_experiment_by_name("straight")
    described = experiment.tags["mlflow.note.content"]
    assert "Best test loss of each method" in described
    assert "`lr0.3`, of 2 finished" in described


def test_data_are_looked_at_once_for_all_trials(monkeypatch):
    """Of a text that is thousands of files."""
    asked = []
    monkeypatch.setattr(origins, "data_digest", lambda options: asked.append(options) or "digest")
    found = origins.DataOfNow()
    trial = type("T", (), {"data": type("D", (), {"model_dump_json": lambda self: "{}"})()})()
    assert [found(trial) for _ in range(3)] == ["digest"] * 3
    assert len(asked) == 1
