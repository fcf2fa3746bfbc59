"""What a trial may ask of its training beside method and model."""

import math

import pytest
import torch
from pydantic import ValidationError

from lqray.experiment.options.schedule import ScheduleOptions
from lqray.experiment.schema import Trial
from lqray.training.checkpoint import Checkpoints
from lqray.training.dataset import load_dataset
from lqray.training.forward import seed_pass
from lqray.training.loop import DivergedError
from lqray.training.reports import Report
from lqray.training.schedule import in_iterations
from lqray.training.variance import Moments
from lqray.training.worker import run_worker
from tests.testing.poisoned import Poisoned
from tests.testing.ranks import run_ranks


def trial(**changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"iterations": 20, "batch_size": 16, "evaluate_every": 100},
        "quantizer": {"method": "alq", "bucket_size": 256, "update_at": [0, 7]},
        "telemetry": {"every": 5},
        "workers": 2,
    }
    return Trial.model_validate(config | changes)


def run(**changes) -> tuple[dict[str, float], list[Report]]:
    reports: list[Report] = []
    return run_worker(trial(**changes), reports.append, torch.device("cpu"), threads=1), reports


@pytest.mark.parametrize("method", ["alq", "qsgd_inf", "full_precision"])
def test_telemetry_does_not_disturb_training(method):
    """BatchNorm, dropout, momentum and adaptive levels: the same bits with and without."""
    quantizer = trial().quantizer.model_dump() | {"method": method}
    quiet = run(telemetry={"every": 0}, quantizer=quantizer)[0]
    loud, reports = run(telemetry={"every": 3, "samples": 3}, quantizer=quantizer)
    assert quiet["test/loss"] == loud["test/loss"]
    assert quiet["test/accuracy"] == loud["test/accuracy"]
    first = reports[0].metrics
    assert first["quantizer/gradient_variance"] > 0
    if method != "full_precision":
        assert first["quantizer/quantized_variance"] > first["quantizer/gradient_variance"]
        ratio = first["quantizer/quantized_variance"] / first["quantizer/gradient_variance"]
        assert first["quantizer/variance_ratio"] == pytest.approx(ratio)
        assert first["quantizer/gradient_snr"] > first["quantizer/quantized_snr"]
    if method == "alq":
        assert first["quantizer/sampled_nmse"] == pytest.approx(first["quantizer/nmse"], rel=1)
        assert reports[-2].metrics["quantizer/expected_variance"] > 0


def variances(rank: int) -> dict[str, float]:
    reports: list[Report] = []
    run_worker(trial(telemetry={"every": 5, "samples": 3}), reports.append, torch.device("cpu"), 1)
    return {k: v for k, v in reports[1].metrics.items() if k.startswith("quantizer/")}


@pytest.mark.processes
def test_variances_do_not_depend_on_the_number_of_processes():
    one, two = run_ranks(variances, 1)[0], run_ranks(variances, 2)[0]
    assert one == pytest.approx(two, rel=1e-4)


def test_moments_are_those_of_all_vectors():
    vectors = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) + 3
    vectors[:, 0] = 1.5
    moments = Moments()
    for vector in vectors:
        moments.add(vector)
    torch.testing.assert_close(moments.mean, vectors.mean(0))
    torch.testing.assert_close(moments.variance, vectors.var(0), rtol=1e-4, atol=1e-7)
    usual = vectors[:, 1:]
    expected = (usual.mean(0).square() / usual.var(0)).log().mean()
    assert moments.mean_log_snr == pytest.approx(float(expected), rel=1e-4)


def losses(reports: list[Report]) -> list[float]:
    return [report.metrics["train/loss"] for report in reports if "train/loss" in report.metrics]


def test_on_the_full_precision_trajectory_quantization_is_only_measured():
    every = {"every": 1}
    exact = run(quantizer={"method": "full_precision"}, telemetry=every)
    measured = run(exchange={"trajectory": "full_precision"}, telemetry=every | {"moments": True})
    assert losses(measured[1]) == pytest.approx(losses(exact[1]), rel=1e-3)
    driven = run(telemetry=every)
    assert losses(driven[1])[-1] != pytest.approx(losses(exact[1])[-1], rel=1e-3)
    last = measured[1][-2].metrics
    assert last["wire/bits_per_coordinate"] == 32
    assert last["quantizer/nmse"] > 0.05
    assert 0 < last["quantizer/moment_nmse"] < math.inf
    levels = {report.metrics["quantizer/level/1"] for report in measured[1][:-1]}
    assert len(levels) == 2  # one for each update


def test_quantization_starts_at_the_iteration_asked_for():
    every = {"every": 1}
    bits = [
        report.metrics["wire/bits_per_coordinate"] for report in run(exchange={"quantize_from": 6}, telemetry=every)[1]
    ]
    assert bits[:6] == [32] * 6
    assert all(width < 5 for width in bits[6:])


@pytest.mark.parametrize("method", ["alq", "full_precision", "sgd"])
def test_a_gradient_that_is_not_finite_stops_the_trial_and_is_named(method):
    quantizer = {"method": method} if method != "alq" else trial().quantizer.model_dump()
    with pytest.raises(DivergedError, match=r"gradient of .* is not finite at iteration \d+ \(loss of the workers"):
        run(optimizer={"name": "sgd", "lr": 1e25}, quantizer=quantizer, model={"name": "mlp"}, telemetry={"every": 0})


def skipping(rank: int, method: str, world: int) -> tuple[dict[str, float], list[float]]:
    """Only rank 0 sees a NaN, at its own step 3."""
    import lqray.training.loop as loop

    dataset = load_dataset(trial().data)
    before = loop.load_dataset
    loop.load_dataset = lambda options: Poisoned(dataset, 3 * 2 // world if rank == 0 else -1)
    try:
        quantizer = {"method": method} if method == "full_precision" else trial().quantizer.model_dump()
        reports: list[Report] = []
        chosen = trial(
            schedule={"iterations": 12, "batch_size": 16, "on_nonfinite": "skip"},
            quantizer=quantizer,
            telemetry={"every": 1},
            exchange={"error_feedback": method != "full_precision"},
        )
        return run_worker(chosen, reports.append, torch.device("cpu"), 1), losses(reports)
    finally:
        loop.load_dataset = before


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("method", ["alq", "full_precision"])
def test_a_step_that_is_not_finite_is_skipped_on_all_ranks_alike(method, world):
    """Weights, BatchNorm and residuals stay finite; replicas stay equal (the run itself checks)."""
    for final, seen in run_ranks(skipping, world, method, world):
        assert final["train/skipped_steps"] == 1
        assert seen[3] != seen[3]
        assert all(loss == loss for step, loss in enumerate(seen) if step != 3)
        assert final["test/loss"] < 5


def test_skipping_for_ever_stops():
    with pytest.raises(DivergedError, match="100 steps in a row were skipped"):
        run(
            model={"name": "mlp"},
            optimizer={"name": "sgd", "lr": 1e25},
            schedule={"iterations": 150, "batch_size": 4, "on_nonfinite": "skip"},
            quantizer={"method": "full_precision"},
        )


def test_epochs_count_passes_over_the_training_set():
    schedule = ScheduleOptions(epochs=3, batch_size=10, decay_at=(1, 2), decay_every=2, warm_up=1)
    found = in_iterations(schedule, 50)
    assert (found.iterations, found.decay_at, found.decay_every, found.warm_up) == (150, (50, 100), 100, 50)
    reports = run(schedule={"epochs": 1, "batch_size": 100}, model={"name": "linear"})[1]
    assert (reports[-1].iteration, reports[-1].iterations) == (7, 7)  # 1437 examples, 200 a step


@pytest.mark.parametrize("schedule", [{"batch_size": 1}, {"batch_size": 1, "iterations": 1, "epochs": 1}])
def test_a_schedule_has_one_length(schedule):
    with pytest.raises(ValidationError, match="exactly one of iterations and epochs"):
        trial(schedule=schedule)


def test_evaluation_on_the_training_set_counts_every_example_once():
    final = run(schedule={"iterations": 5, "batch_size": 16, "evaluate_train": True}, model={"name": "linear"})[0]
    correct = final["train/accuracy"] * 1437
    assert correct == pytest.approx(round(correct), abs=1e-6)
    assert final["train/full_loss"] > 0


def test_phases_of_a_step_are_timed():
    metrics = run()[1][0].metrics
    for phase in ("data", "forward", "backward", "encode", "exchange", "decode", "optimizer"):
        assert metrics[f"time/{phase}_seconds"] > 0


@pytest.mark.parametrize("option", [{"channels_last": True}, {"amp": "bf16"}, {"dtype": "bf16"}])
def test_ways_to_compute_a_model_agree_up_to_rounding(option):
    model = {"name": "resnet", "depth": 8}
    usual, other = (run(model=model | more)[1][0].metrics["train/loss"] for more in ({}, option))
    assert other == pytest.approx(usual, rel=0.02)
    if "channels_last" not in option:
        assert other != usual


def test_a_compiled_model_trains_as_the_model_itself():
    pytest.importorskip("torch._inductor")
    model = {"name": "mlp", "layers": [16]}
    short = {"iterations": 3, "batch_size": 16}
    usual, compiled = (run(model=model | more, schedule=short)[0] for more in ({}, {"compile": True}))
    assert compiled["test/loss"] == pytest.approx(usual["test/loss"], rel=1e-3)


def test_what_diverged_is_said_to_the_end_and_costs_no_mean(tmp_path):
    """Also after a restart at the end, which measures nothing again."""
    chosen = trial(
        data={"name": "gaussian_mixture"},
        model={"name": "mlp", "layers": [8]},
        optimizer={"name": "sgd", "lr": 1e30},
        schedule={"iterations": 12, "batch_size": 16, "on_nonfinite": "skip"},
        telemetry={"every": 1},
    )
    for _ in range(2):
        reports: list[Report] = []
        checkpoints = Checkpoints(tmp_path)
        final = run_worker(chosen, reports.append, torch.device("cpu"), 1, checkpoints=checkpoints)
        assert {"train/loss", "test/loss", "quantizer/nmse"} <= set(reports[-1].lost)
        assert 0 < final["quantizer/mean_nmse"] < 100
        assert final["quantizer/mean_nmse_left_out"] == final["train/skipped_steps"] == 11
        assert final["test/accuracy"] < 0.01
    assert reports[-1] is reports[0]


def test_a_metric_that_is_finite_again_is_not_lost():
    reports = run(
        data={"name": "gaussian_mixture"},
        model={"name": "mlp", "layers": [8]},
        schedule={"iterations": 3, "batch_size": 16},
    )[1]
    assert [one.lost for one in reports] == [()] * len(reports)


@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 - 1])
def test_a_pass_is_random_as_after_manual_seed(seed):
    torch.manual_seed(seed)
    expected = torch.rand(5)
    torch.manual_seed(1)
    seed_pass(seed, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)
