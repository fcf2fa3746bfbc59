"""Clipping by the global norm, and its place in a step."""

import math

import pytest
import torch
from torch import nn

from lqray.experiment.schema import Trial
from lqray.training.clipping import clip, clipping_metrics
from lqray.training.reports import Report
from lqray.training.worker import run_worker
from tests.testing.ranks import run_ranks


def network(*gradients: torch.Tensor | None) -> nn.Module:
    parameters = [nn.Parameter(torch.zeros(1 if each is None else each.shape)) for each in gradients]
    for parameter, each in zip(parameters, gradients, strict=True):
        if each is not None:
            parameter.data = parameter.to(each.dtype)
        parameter.grad = each
    return nn.ParameterList(parameters)


def test_all_gradients_are_scaled_by_one_factor():
    one, two = torch.tensor([[3.0, 0.0]]), torch.tensor([0.0, 4.0])
    norm = clip(network(one, None, two), 2.5)
    assert (norm.dtype, norm.shape, float(norm)) == (torch.float32, (), 5.0)
    assert (one.tolist(), two.tolist()) == ([[1.5, 0.0]], [0.0, 2.0])
    assert clipping_metrics(norm, 2.5) == {"train/gradient_norm": 5.0, "train/clipped": 0.5}


@pytest.mark.parametrize("most", [5.0, 1e30])
def test_short_gradients_keep_their_bits(most):
    gradient = torch.tensor([3.0, 4.0])
    assert float(clip(network(gradient), most)) == 5.0
    assert gradient.tolist() == [3.0, 4.0]
    assert clipping_metrics(torch.tensor(5.0), most)["train/clipped"] == 1.0


def test_zeros_and_no_gradients_have_the_norm_zero():
    gradient = torch.zeros(3)
    for net in (network(gradient), network(None)):
        assert clipping_metrics(clip(net, 1.0), 1.0) == {"train/gradient_norm": 0.0, "train/clipped": 1.0}
    assert gradient.tolist() == [0, 0, 0]


def test_it_is_torchs():
    drawn = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (7, 100)]
    ours, theirs = network(*(each.clone() for each in drawn)), network(*(each.clone() for each in drawn))
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert clip(ours, 0.5) == pytest.approx(float(expected), rel=1e-6)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("huge", [1e20, 3e38])
def test_finite_gradients_have_a_norm_whatever_their_squares(huge):
    gradients = torch.full((4,), huge), torch.zeros(2)
    norm = float(clip(network(*gradients), 1.0))
    assert norm == pytest.approx(min(2 * huge, torch.finfo(torch.float32).max))
    assert gradients[0].tolist() == pytest.approx([0.5] * 4)


def test_gradients_of_several_dtypes_are_clipped_together():
    one, two = torch.tensor([3.0], dtype=torch.bfloat16), torch.tensor([4.0])
    assert float(clip(network(one, two), 2.5)) == 5.0
    assert (one.dtype, one.tolist(), two.tolist()) == (torch.bfloat16, [1.5], [2.0])


def trial(clip_norm: float | None, method: str = "full_precision", **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [16]},
        "optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": clip_norm},
        "schedule": {"iterations": 3, "batch_size": 16, "on_nonfinite": "skip"},
        "quantizer": {"method": method},
        "telemetry": {"every": 1},
        "workers": 2,
    }
    return Trial.model_validate(config | changes)


def run(rank: int, chosen: Trial) -> list[dict[str, float]]:
    reports: list[Report] = []
    final = run_worker(chosen, reports.append, torch.device("cpu"), 1)
    return [report.metrics for report in reports[:-1]] + [final]


def test_a_step_says_what_it_clipped():
    without, loose, tight = (run(0, trial(most)) for most in (None, 1e9, 0.25))
    assert not {"train/gradient_norm", "train/clipped"} & set(without[0])
    assert [step["train/loss"] for step in without[:3]] == [step["train/loss"] for step in loose[:3]]
    assert [step["train/clipped"] for step in loose[:3]] == [1.0] * 3
    assert tight[0]["train/gradient_norm"] == loose[0]["train/gradient_norm"] > 0.25
    assert tight[0]["train/clipped"] == pytest.approx(0.25 / tight[0]["train/gradient_norm"])
    assert tight[-1]["test/loss"] != loose[-1]["test/loss"]


def test_a_step_that_is_skipped_is_not_clipped():
    """The first step of this rate makes all later gradients NaN."""
    steps = run(0, trial(1e38, optimizer={"name": "sgd", "lr": 1e38, "clip_norm": 1e38}))
    assert [math.isfinite(step.get("train/gradient_norm", math.nan)) for step in steps] == [True, False, False, False]


def under_torchs_own(rank: int, method: str) -> list[dict[str, float]]:
    return run(rank, trial(0.1, method, optimizer={"name": "torch.optim:SGD", "lr": 0.1, "clip_norm": 0.1}))


@pytest.mark.processes
@pytest.mark.parametrize("method", ["alq", "full_precision"])
def test_ranks_clip_alike(method):
    """The run itself compares replicas."""
    keys = ("train/gradient_norm", "train/clipped", "test/loss")
    one, two = ([[step.get(key) for key in keys] for step in rank] for rank in run_ranks(under_torchs_own, 2, method))
    assert one == two
    assert 0 < one[0][1] < 1
