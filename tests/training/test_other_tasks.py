"""Training of what is no classifier of images: every method, both reductions, and the metrics that come of it."""

import math

import pytest
import torch

from lqray.experiment import names
from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import Trial
from lqray.training.reports import Report
from lqray.training.worker import run_worker
from tests.testing.methods import REDUCTIONS

TEXT = {
    "data": {"name": "text", "context": 16, "evaluation_examples": 32},
    "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 16},
    "optimizer": {"name": "adamw", "lr": 0.02},
    "schedule": {"iterations": 12, "batch_size": 8, "evaluate_every": 6},
    "workers": 2,
    "telemetry": {"every": 6, "samples": 2},
}
LINEAR = {
    "data": {"name": "linear", "dimension": 20, "noise_scale": 0.5, "train_size": 400},
    "model": {"name": "linear"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 60, "batch_size": 20, "evaluate_every": 30},
    "workers": 2,
}


def run(config: dict, **changes) -> tuple[dict[str, float], list[Report]]:
    reports: list[Report] = []
    chosen = Trial.model_validate(config | changes)
    return run_worker(chosen, reports.append, torch.device("cpu"), threads=1), reports


@pytest.mark.parametrize("method", names.methods())
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_method_trains_a_language_model(method, reduction):
    if method == "post_local_sgd":
        pytest.skip("wants exchange.every, and a process for each worker")
    final, reports = run(TEXT, quantizer={"method": method}, exchange={"reduction": reduction})
    first = reports[0].metrics
    assert first["train/loss"] == pytest.approx(math.log(256), rel=0.02)
    assert final["test/loss"] < first["train/loss"]
    assert final["test/perplexity"] == pytest.approx(math.exp(final["test/loss"]))
    assert final["test/bits_per_byte"] == pytest.approx(final["test/loss"] / math.log(2))
    assert first["quantizer/gradient_variance"] > 0


@pytest.mark.parametrize("method", ["full_precision", "allocated", "slopes"])
def test_a_regression_comes_to_its_optimum(method):
    """Of half the squared error that is half the variance of the noise, .125."""
    final, _ = run(LINEAR, quantizer={"method": method})
    assert final["test/loss"] - final["test/excess_loss"] == pytest.approx(0.125)
    assert -0.02 < final["test/excess_loss"] < 0.03


def test_the_best_checkpoint_is_that_of_the_lowest_loss(tmp_path):
    from lqray.training.checkpoint import Checkpoints, read_checkpoint

    rising = LINEAR["schedule"] | {"iterations": 40, "evaluate_every": 10}
    reports: list[Report] = []
    chosen = Trial.model_validate(
        LINEAR
        | {"schedule": rising, "optimizer": {"name": "sgd", "lr": 0.3}, "quantizer": {"method": "signsgd"}, "seed": 3}
    )
    run_worker(chosen, reports.append, torch.device("cpu"), 1, checkpoints=Checkpoints(tmp_path, 100))
    losses = {report.iteration: report.metrics["test/loss"] for report in reports if report.evaluated}
    best = read_checkpoint(tmp_path / "best.pt", torch.device("cpu"))
    assert best["shared"]["progress"]["best"] == -min(losses.values())


def test_a_headline_that_these_data_do_not_have_is_told(tmp_path):
    """Of tokens without a tokenizer nobody knows the bytes."""
    (tmp_path / "some.bin").write_bytes(bytes(4000))
    data = {"name": "text", "root": str(tmp_path / "some.bin"), "vocabulary": 500, "context": 16}
    with pytest.raises(UnfitTrialError, match=r"found test/bits_per_byte.*allowed: test/loss, test/perplexity"):
        run(
            TEXT,
            data=data,
            quantizer={"method": "full_precision"},
            task={"headline": "test/bits_per_byte", "higher_is_better": False},
        )
