"""Metrics of a user's own on the test set, beside loss and accuracy."""

import sys

import pytest
import torch
from pydantic import ValidationError

from lqray.experiment import parts
from lqray.experiment.errors import PartError
from lqray.experiment.options.metrics import metric_name
from lqray.experiment.part_options import check_parts
from lqray.experiment.schema import Trial
from lqray.training.worker import run_worker

TEXT = """
import torch
CONSTANT = 3
def correct(outputs, targets): return outputs.argmax(dim=1) == targets
def top3(outputs, targets): return (outputs.topk(3).indices == targets[:, None]).any(dim=1)
def spoiling(outputs, targets): return outputs.zero_()[:, 0] + targets.zero_()
def mean(outputs, targets): return (outputs.argmax(dim=1) == targets).double().mean()
def number(outputs, targets): return 1.0
def one(outputs): return outputs[:, 0]
def missing(outputs, targets): return torch.where(targets == 0, torch.nan, 1.0)
class Group:
    @staticmethod
    def correct(outputs, targets): return outputs
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "found_metrics.py").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_places", [])
    monkeypatch.setattr(parts, "_added", [])
    yield
    sys.modules.pop("found_metrics", None)


def trial(*metrics: str, **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 20, "batch_size": 16, "evaluate_every": 10, "evaluate_train": True},
        "quantizer": {"method": "full_precision"},
        "metrics": [f"found_metrics:{name}" for name in metrics],
    }
    return Trial.model_validate(config | changes)


def results(*metrics: str) -> tuple[dict[str, float], list]:
    reports: list = []
    return run_worker(trial(*metrics), reports.append, torch.device("cpu"), threads=1), reports


def test_they_are_means_over_the_test_set_and_change_nothing():
    plain, _ = results()
    measured, reports = results("spoiling", "correct", "top3")
    assert measured["test/correct"] == measured["test/accuracy"]
    assert measured["test/accuracy"] < measured["test/top3"] < 1
    assert measured["test/spoiling"] == 0
    for key in ("test/accuracy", "test/loss", "train/accuracy", "train/full_loss"):
        assert measured[key] == plain[key]
    assert "train/top3" not in measured
    assert [report.iteration for report in reports if "test/top3" in report.metrics] == [10, 20]


def test_a_mean_that_is_no_number_is_told_as_lost():
    _, reports = results("missing")
    assert reports[-1].lost == ("test/missing",)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mean", r"found values of the shape \(\) for 360 targets"),
        ("number", "makes a float.*allowed: a Tensor"),
        ("one", r"found a function of \(outputs\); allowed: one of \(outputs, targets\)"),
        ("CONSTANT", "found int 3; allowed: a function of"),
        ("corect", "did you mean 'correct'"),
    ],
)
def test_what_is_no_metric_is_told(name, told):
    with pytest.raises(PartError, match=f"metric found_metrics:{name}: .*{told}"):
        results(name)


@pytest.mark.parametrize("name", ["CONSTANT", "corect"])
def test_what_can_be_told_before_training_is(name):
    with pytest.raises(PartError):
        check_parts(trial(name))


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (["top3"], "found 'top3'"),
        (["found_metrics:correct", "found_metrics:Group.correct"], "found 'correct', two of them"),
        (["found_metrics:accuracy"], "functions of other names than classification has: loss, accuracy"),
        (["found_metrics:größe"], "not ASCII"),
    ],
)
def test_names_that_are_refused(metrics, told):
    with pytest.raises(ValidationError, match=told):
        trial(metrics=metrics)


def test_a_trial_without_metrics_is_what_it_was():
    """Its id (tests/experiment has those of before), its parameters, and the digest of its code."""
    assert trial().id == Trial.model_validate(trial().config() | {"metrics": []}).id
    assert "metrics" not in trial().flat()
    assert trial("correct").flat()["metrics"] == ["found_metrics:correct"]
    assert len({trial().id, trial("correct").id, trial("top3").id}) == 3
    assert metric_name("found_metrics:Group.correct") == "correct"
