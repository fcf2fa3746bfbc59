import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.multiprocessing import ProcessRaisedException

from lqray.communication import GradientExchange, LevelsDifferError
from lqray.experiment import names
from lqray.experiment.options.schedule import ScheduleOptions
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.training.batches import Batches
from lqray.training.dataset import load_dataset
from lqray.training.extra_gradients import extra_gradient
from lqray.training.forward import Objective
from lqray.training.loop import DivergedError
from lqray.training.models import build_model
from lqray.training.optimizers import build_optimizer
from lqray.training.reports import Report
from lqray.training.schedule import learning_rate
from lqray.training.tasks.classification import Classification
from lqray.training.worker import run_worker
from tests.testing.ranks import run_ranks


def trial(**changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [32]},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"iterations": 60, "batch_size": 32, "evaluate_every": 25},
        "quantizer": {"method": "alq", "bucket_size": 256, "update_at": [0, 20]},
    }
    return Trial.model_validate(config | changes)


def run(chosen: Trial) -> tuple[dict[str, float], list[Report]]:
    reports: list[Report] = []
    return run_worker(chosen, reports.append, torch.device("cpu"), threads=1), reports


def test_a_run_is_a_function_of_its_trial():
    (first, reports), (second, again) = run(trial()), run(trial())
    untimed = [
        [{k: v for k, v in report.metrics.items() if not k.startswith("time/")} for report in part]
        for part in (reports, again)
    ]
    assert untimed[0] == untimed[1]
    assert first["test/loss"] == second["test/loss"]
    assert run(trial(seed=2))[0]["test/loss"] != first["test/loss"]


def test_extra_gradients_leave_no_trace():
    """Parameters, buffers of BatchNorm, gradients and random state are those of before."""
    dataset = load_dataset(trial().data)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 10)
    )
    network[1].weight.grad = torch.ones_like(network[1].weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    gradients = extra_gradient(
        network, Objective(Classification(10), trial().model), dataset.train_batch(torch.arange(32), 0), seed=3
    )
    assert {name: g.shape for name, g in gradients.items()} == {n: p.shape for n, p in network.named_parameters()}
    assert any(g.abs().max() > 0 for g in gradients.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network[1].weight.grad, torch.ones_like(network[1].weight))
    assert network[1].bias.grad is None
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("buckets", ["network", "layer"])
def test_fresh_sampling_fits_levels_and_changes_nothing_else(buckets):
    """With every update after the last step, levels cannot matter to training: the two runs end in the same bits."""
    base = {"method": "alq", "bucket_size": 64, "update_at": [59], "update_every": 0, "samples": 3}
    exchange = {"reduction": "all_gather", "buckets": buckets}
    fresh = run(trial(quantizer=base | {"sampling": "fresh"}, exchange=exchange))[0]
    training = run(trial(quantizer=base, exchange=exchange))[0]
    assert fresh["test/loss"] == training["test/loss"]
    early = base | {"sampling": "fresh", "update_at": [0, 20]}
    levels = [r.metrics["quantizer/level/1"] for r in run(trial(quantizer=early))[1] if "train/loss" in r.metrics]
    assert len(set(levels)) == 2


def test_extra_batches_are_a_function_of_seed_iteration_sample_and_worker():
    batches = Batches(100, 10, 2, 1)
    found = {tuple(batches.extra_indices(i, s, w).tolist()) for i in range(3) for s in range(3) for w in range(2)}
    assert len(found) == 18
    assert torch.equal(batches.extra_indices(1, 2, 0), batches.extra_indices(1, 2, 0))


def test_reports_of_a_run():
    metrics, reports = run(trial())
    assert [report.iteration for report in reports if report.evaluated] == [25, 50, 60]
    assert [report.iteration for report in reports if "train/loss" in report.metrics] == [1, 11, 21, 31, 41, 51]
    assert reports[-1].final
    assert reports[-1].metrics == metrics
    assert metrics["test/accuracy"] > 0.85
    assert 0 < metrics["quantizer/mean_nmse"] < 5
    assert "quantizer/mean_moment_nmse" not in metrics
    levels = [report.metrics["quantizer/level/1"] for report in reports if "quantizer/level/1" in report.metrics]
    assert len(set(levels)) >= 2


def test_what_is_lost_as_adam_weighs_it_is_measured_where_it_is_asked_for():
    metrics, reports = run(trial(telemetry={"every": 10, "moments": True}))
    assert 0 < metrics["quantizer/mean_moment_nmse"] < 100
    found = [one.metrics["quantizer/moment_nmse"] for one in reports if "train/loss" in one.metrics]
    assert len(found) == 6
    assert all(0 < each < 100 for each in found)


def test_a_run_is_not_reported_as_done_before_its_last_exchanges_were_checked(monkeypatch):
    def differs(self):
        raise LevelsDifferError("seen at the end")

    monkeypatch.setattr(GradientExchange, "finish", differs)
    reports: list[Report] = []
    with pytest.raises(LevelsDifferError, match="seen at the end"):
        run_worker(trial(), reports.append, torch.device("cpu"), threads=1)
    assert reports
    assert not any(report.final for report in reports)


def test_sgd_sends_nothing_and_full_precision_32_bits():
    sgd = run(trial(quantizer={"method": "sgd"}))[0]
    full = run(trial(quantizer={"method": "full_precision"}))[0]
    assert sgd["wire/bits_per_coordinate"] == 0
    assert full["wire/bits_per_coordinate"] == 32
    assert sgd["test/loss"] == full["test/loss"]  # one worker: the mean of one gradient is that gradient


def test_methods_of_one_seed_see_the_same_batches_and_initial_weights():
    losses = [run(trial(quantizer={"method": method}))[1][0].metrics["train/loss"] for method in ("qsgd_inf", "nuqsgd")]
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_stops_the_run():
    chosen = trial(optimizer={"name": "sgd", "lr": 1e20}, quantizer={"method": "full_precision"})
    with pytest.raises(DivergedError, match="at iteration"):
        run(chosen)


def test_batches_are_disjoint_shares_of_a_permutation():
    batches = Batches(examples=103, batch_size=5, workers=4, seed=3)
    assert batches.steps_per_epoch == 5
    seen = [batches.indices(step, worker) for step in range(5) for worker in range(4)]
    assert len(np.unique(torch.cat(seen))) == 100
    following = [batches.indices(5 + step, worker) for step in range(5) for worker in range(4)]
    assert not torch.equal(torch.cat(seen), torch.cat(following))
    assert torch.equal(batches.indices(7, 2), Batches(103, 5, 4, 3).indices(7, 2))
    with pytest.raises(ValueError, match="needs 40"):
        Batches(examples=39, batch_size=10, workers=4, seed=0)


def test_learning_rate_decays_at_the_listed_iterations():
    schedule = ScheduleOptions(iterations=10, batch_size=1, decay_at=(3, 6), decay_rate=0.1)
    rates = [learning_rate(1.0, schedule, i) for i in (0, 2, 3, 5, 6, 9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_seeds_differ_by_purpose():
    seeds = {derive_seed(s, *p) for s in (1, 2) for p in (("model",), ("rounding", 0), ("rounding", 1))}
    assert len(seeds) == 6
    assert derive_seed(1, "model") == 725898547379920300


MODELS = [(name, {}) for name in names.models() if name not in ("torchvision", "gpt")] + [
    ("torchvision", {"architecture": "resnet18"}),
    ("wide_resnet", {"depth": 10, "width": 2, "dropout": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_model_contract(name, options, shape):
    options = trial(model={"name": name, **options}).model
    if name == "torchvision" and shape[0] != 3:
        with pytest.raises(ValueError, match="3 channels; these have 1"):
            build_model(options, shape, 7)
        return
    torch.manual_seed(0)
    model = build_model(options, shape, 7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    torch.manual_seed(0)
    again = build_model(options, shape, 7)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_torchvision_works_beside_any_build_of_torch():
    code = (
        "from lqray.training.vision import torchvision as tv, torch\n"
        "from torchvision.transforms import v2\n"
        "assert v2.RandomCrop(8, padding=1)(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)\n"
        "assert tv.models.resnet18(num_classes=5)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)\n"
        "assert tv.datasets.CIFAR10\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def losses_of(rank: int, workers: int) -> dict[str, list[float]]:
    """Training losses of ten steps by method, with `workers` shared by the ranks of this group."""
    found = {}
    for method in ("full_precision", "fp16", "bf16", "powersgd", "qsgd_inf", "alq"):
        config = {"method": method} | ({"start_iteration": 3} if method == "powersgd" else {"bucket_size": 256})
        chosen = trial(
            workers=workers,
            model={"name": "cnn"},
            schedule={"iterations": 10, "batch_size": 16},
            telemetry={"every": 1},
            quantizer=config,
        )
        reports: list[Report] = []
        run_worker(chosen, reports.append, torch.device("cpu"), threads=1)
        found[method] = [r.metrics["train/loss"] for r in reports if "train/loss" in r.metrics]
    return found


@pytest.mark.processes
def test_workers_that_share_processes_train_as_those_that_do_not():
    alone, pairs, together = (run_ranks(losses_of, world, 4)[0] for world in (4, 2, 1))
    for method, expected in alone.items():
        rounding = {"fp16": 1e-3, "bf16": 1e-2}.get(method, 1e-5)  # torch's hooks round the mean of a process
        for found in (pairs, together):
            np.testing.assert_allclose(found[method], expected, rtol=rounding, err_msg=method)
    assert len(alone["alq"]) == 10


def test_workers_must_divide_among_processes():
    with pytest.raises(ProcessRaisedException, match="3 workers, the process group 2 ranks") as found:
        run_ranks(losses_of, 2, 3)
    assert "a divisor of the workers" in str(found.value)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(8, 75_290), (20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_resnets_have_the_sizes_of_the_paper(depth, parameters):
    """0.27M, 0.46M, 0.66M, 0.85M, 1.7M (He et al. 2016, table 6)."""
    network = build_model(trial(model={"name": "resnet", "depth": depth}).model, (3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_wide_resnet_28_10_has_36_5_million_parameters():
    network = build_model(trial(model={"name": "wide_resnet"}).model, (3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 36_479_194


def test_models_that_there_are_not():
    with pytest.raises(ValidationError, match="6 n \\+ 2"):
        trial(model={"name": "resnet", "depth": 21})
    with pytest.raises(ValidationError, match="6 n \\+ 4"):
        trial(model={"name": "wide_resnet", "depth": 20})
    options = trial(model={"name": "torchvision", "architecture": "resnet19"}).model
    with pytest.raises(ValueError, match="'resnet19'; allowed: alexnet.*did you mean"):
        build_model(options, (3, 64, 64), 10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay_every": 4, "decay_rate": 0.5}, {0: 1, 3: 1, 4: 0.5, 8: 0.25}),
        ({"decay": "exponential", "decay_every": 2, "decay_rate": 0.25}, {0: 1, 1: 0.5, 2: 0.25}),
        ({"decay": "exponential", "decay_rate": 0.01}, {0: 1, 5: 0.1}),
        ({"decay": "cosine"}, {0: 1, 5: 0.5}),
        ({"warm_up": 4, "decay_at": (6,)}, {0: 0.25, 1: 0.5, 3: 1, 5: 1, 6: 0.1}),
    ],
)
def test_learning_rate_schedules(options, expected):
    schedule = ScheduleOptions(iterations=10, batch_size=1, **options)
    for iteration, rate in expected.items():
        assert learning_rate(1.0, schedule, iteration) == pytest.approx(rate)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_are_torchs(name):
    options = {"name": name, "lr": 0.01, "weight_decay": 0.1} | (
        {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    )
    chosen = trial(optimizer=options).optimizer
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    own = {"lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.9, "nesterov": True} if name == "sgd" else {})
    chosen = trial(optimizer={"name": name, **own}).optimizer
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    for network, optimizer in ((ours, build_optimizer(chosen, ours)), (theirs, kind(theirs.parameters(), **own))):
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_nesterov_needs_momentum():
    with pytest.raises(ValidationError, match="needs a momentum above 0"):
        trial(optimizer={"name": "sgd", "lr": 0.1, "nesterov": True})


@pytest.mark.parametrize("method", ["alq", "full_precision"])
def test_evaluations_say_what_training_has_cost_so_far(method):
    """One process sends nothing; see test_resume for several."""
    _, reports = run(trial(quantizer={"method": method}))
    spent = [report.metrics["time/training_seconds"] for report in reports if report.evaluated]
    assert len(spent) == 3
    assert 0 < spent[0] < spent[1] < spent[2]
    assert [r.metrics["wire/total_bytes_sent"] for r in reports if r.evaluated] == [0, 0, 0]


def test_only_the_final_report_of_a_quantized_run_has_a_snapshot_of_its_last_gradient():
    _, reports = run(trial())
    assert [report.snapshot is not None for report in reports] == [False] * (len(reports) - 1) + [True]
    found = reports[-1].snapshot
    assert (found["method"], found["bits"], found["norm"], found["bucket_size"]) == ("alq", 3, "rms", 256)
    assert found["iteration"] == 60
    assert len(found["levels"]) == 8
    assert np.dot(found["density"], np.diff(found["edges"])) == pytest.approx(1.0)
    assert run(trial(quantizer={"method": "full_precision"}))[1][-1].snapshot is None


def reports_of_rank(rank: int, method: str) -> list[tuple[int, dict]]:
    config = {"quantizer": {"method": method, "bucket_size": 64}, "workers": 2, "telemetry": {"every": 1}}
    if method == "alq":
        config["exchange"] = {"reduction": "scatter_reduce", "entropy": "rans"}
    return [(report.iteration, report.metrics) for report in run(trial(**config))[1]]


@pytest.mark.processes
@pytest.mark.parametrize("method", ["alq", "full_precision"])
def test_total_bytes_are_those_of_all_steps(method):
    """Entropy coded: another number of bytes at every step and rank."""
    for reports in run_ranks(reports_of_rank, 2, method):
        sent = {step: metrics["wire/bytes_sent"] for step, metrics in reports if "train/loss" in metrics}
        totals = {step: metrics["wire/total_bytes_sent"] for step, metrics in reports if "test/loss" in metrics}
        assert totals == {step: sum(sent[k] for k in range(1, step + 1)) for step in (25, 50, 60)}
        assert totals[25] > 0


def weights_after(chosen: Trial) -> torch.Tensor:
    found: list[torch.Tensor] = []

    def look(stepped) -> None:
        if stepped.done == stepped.iterations:
            found.append(torch.cat([one.detach().reshape(-1) for one in stepped.network.parameters()]))

    run_worker(chosen, lambda report: None, torch.device("cpu"), threads=1, after_step=look)
    return found[0]


@pytest.mark.parametrize("method", ["full_precision", "qsgd_inf"])
@pytest.mark.parametrize("fresh", [0, 2])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(method, fresh):
    """Up to the order of summation, which rounding to levels may turn into another level now and then."""
    schedule = {"iterations": 8, "batch_size": 24, "evaluate_every": 100}
    telemetry = {"every": 4, "samples": fresh}
    quantizer = {"method": method} | ({"bucket_size": 64} if method != "full_precision" else {})
    first, whole, parts = (
        weights_after(
            trial(
                schedule=schedule | {"iterations": steps, "accumulate": pieces},
                telemetry=telemetry,
                quantizer=quantizer,
                workers=2,
            )
        )
        for steps, pieces in ((1, 1), (8, 1), (8, 4))
    )
    moved = (whole - first).norm()
    assert (parts - whole).norm() < (1e-5 if method == "full_precision" else 0.02) * moved


def in_pieces(rank: int) -> list[float]:
    chosen = trial(
        schedule={"iterations": 6, "batch_size": 24, "accumulate": 3},
        workers=4,
        quantizer={"method": "alq", "bucket_size": 64, "sampling": "fresh", "update_at": [0, 3]},
    )
    return weights_after(chosen).tolist()


@pytest.mark.processes
def test_pieces_of_several_workers_in_several_processes():
    """One exchange a step, of whole batches: as in one process, to the bit."""
    one, two = run_ranks(in_pieces, 1), run_ranks(in_pieces, 2)
    assert two[0] == two[1]
    assert one[0] == two[0]
