"""Optimizers: every one of lqray's and one of torch's by reference learns, follows the schedule, and goes on from a
checkpoint in the same bits."""

import pytest
import torch
from torch import nn

from lqray.experiment import names
from lqray.experiment.errors import PartError, UnfitTrialError
from lqray.experiment.schema import Trial
from lqray.training.checkpoint import Checkpoints, read_checkpoint
from lqray.training.optimizers import build_optimizer, lr_ratios
from lqray.training.reports import Report
from lqray.training.worker import run_worker

OPTIMIZERS = [
    *({"name": name, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.01} for name in names.optimizers()),
    {"name": "muon", "lr": 0.01, "adamw_lr": 0.002, "adjust_lr": "original"},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decayed": "matrices"},
    {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "decayed": "matrices"},
    {"name": "torch.optim:RMSprop", "lr": 0.01, "options": {"alpha": 0.9, "momentum": 0.5}},
    {"name": "torch.optim:NAdam", "lr": 0.01, "weight_decay": 0.1},
    {"name": "torch.optim:AdamW", "lr": 0.01, "options": {"amsgrad": True}},
]
IDS = [f"{one['name']}{number}" for number, one in enumerate(OPTIMIZERS)]


def trial(optimizer: dict, **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [16]},
        "optimizer": optimizer,
        "schedule": {"iterations": 14, "batch_size": 32, "evaluate_every": 5, "decay": "cosine", "warm_up": 3},
        "quantizer": {"method": "full_precision"},
    }
    return Trial.model_validate(config | changes)


class _KilledError(Exception):
    pass


def train(chosen: Trial, folder, kill_at: int = 0) -> dict[int, dict]:
    """Reports without times, by iteration. kill_at: the step after which it ends."""
    reports: dict[int, dict] = {}
    steps = 0

    def note(report: Report) -> None:
        untimed = {key: value for key, value in report.metrics.items() if not key.startswith("time/")}
        reports.setdefault(report.iteration, {}).update(untimed)

    def after_step(_) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            raise _KilledError

    run_worker(chosen, note, torch.device("cpu"), 1, checkpoints=Checkpoints(str(folder), 4), after_step=after_step)
    return reports


def weights(folder) -> dict[str, torch.Tensor]:
    newest = sorted(folder.glob("step-*.pt"))[-1]
    found: dict[str, torch.Tensor] = read_checkpoint(newest, torch.device("cpu"))["shared"]["network"]
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_continued_is_never_stopped(tmp_path, optimizer):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = train(trial(optimizer), whole)
    with pytest.raises(_KilledError):
        train(trial(optimizer), cut, kill_at=6)
    found = train(trial(optimizer), cut)
    assert min(found) > 4
    assert found == {iteration: metrics for iteration, metrics in wanted.items() if iteration > 4}
    assert all(torch.equal(value, weights(cut)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_it_learns(tmp_path, optimizer):
    small = {**optimizer, "lr": 0.001} if optimizer["name"] == "lion" else optimizer
    reports = train(trial(small, schedule={"iterations": 60, "batch_size": 32, "evaluate_every": 59}), tmp_path)
    assert reports[60]["test/loss"] < 1.8


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"look": nn.Embedding(5, 4), "conv": nn.Conv2d(2, 3, 3), "one": nn.Linear(4, 3)})


def test_muon_has_matrices_and_adamw_the_rest():
    made = build_optimizer(trial({"name": "muon", "lr": 0.02, "adamw_lr": 0.005}).optimizer, network())
    shapes = [[tuple(one.shape) for one in group["params"]] for group in made.param_groups]
    assert shapes == [[(3, 4)], [(5, 4), (3, 2, 3, 3), (3,), (3,)]]
    assert lr_ratios(made, 0.02) == [1.0, 0.25]


@pytest.mark.parametrize("name", names.optimizers())
def test_weight_decay_is_of_all_or_of_matrices(name):
    """Without any gradient but zero, decay is all that moves a weight; embeddings and convolutions are matrices."""
    for decayed in ("all", "matrices"):
        options = {"name": name, "lr": 0.1, "weight_decay": 0.5, "decayed": decayed}
        net = network()
        before = {name: one.detach().clone() for name, one in net.named_parameters()}
        made = build_optimizer(trial(options).optimizer, net)
        for one in net.parameters():
            one.grad = torch.zeros_like(one)
        made.step()
        moved = {name for name, one in net.named_parameters() if not torch.equal(one, before[name])}
        matrices = {"look.weight", "conv.weight", "one.weight"}
        assert moved == (set(before) if decayed == "all" else matrices)
        assert sorted(len(group["params"]) for group in made.param_groups) == (
            ([5] if name != "muon" else [1, 4]) if decayed == "all" else ([2, 3] if name != "muon" else [1, 2, 2])
        )
        assert lr_ratios(made, 0.1) == [1.0] * len(made.param_groups)


def test_groups_of_decay_keep_the_ratios_of_rates():
    options = {"name": "muon", "lr": 0.02, "adamw_lr": 0.005, "decayed": "matrices"}
    assert lr_ratios(build_optimizer(trial(options).optimizer, network()), 0.02) == [1.0, 0.25, 0.25]


def test_a_network_of_matrices_alone_has_one_group():
    options = trial({"name": "adamw", "lr": 0.02, "decayed": "matrices", "weight_decay": 0.1}).optimizer
    only = build_optimizer(options, nn.Linear(2, 2, bias=False))
    assert [group["weight_decay"] for group in only.param_groups] == [0.1]


def test_muon_is_torchs_muon_and_adamw():
    """Step for step, with rates that change as a schedule changes them."""
    chosen = trial({"name": "muon", "lr": 0.02, "weight_decay": 0.1}).optimizer
    one, two = nn.Linear(4, 3), nn.Linear(4, 3)
    two.load_state_dict(one.state_dict())
    ours = build_optimizer(chosen, one)
    theirs = [
        torch.optim.Muon([two.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([two.bias], lr=0.02, weight_decay=0.1),
    ]
    for lr in (0.02, 0.01):
        inputs = torch.randn(8, 4)
        for group in [*ours.param_groups, *(group for each in theirs for group in each.param_groups)]:
            group["lr"] = lr
        for layer in (one, two):
            layer.zero_grad()
            layer(inputs).square().sum().backward()
        ours.step()
        for each in theirs:
            each.step()
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


def test_schedules_reach_a_loaded_pair():
    chosen = trial({"name": "muon", "lr": 0.02}).optimizer
    made, net = build_optimizer(chosen, network()), network()
    again = build_optimizer(chosen, net)
    again.load_state_dict(made.state_dict())
    for group in again.param_groups:
        group["lr"] = 0.0
    before = [one.clone() for one in net.parameters()]
    for one in net.parameters():
        one.grad = torch.ones_like(one)
    again.step()
    assert all(torch.equal(one, two) for one, two in zip(before, net.parameters(), strict=True))


def test_muon_needs_a_matrix():
    with pytest.raises(UnfitTrialError, match="without weights of two dimensions"):
        build_optimizer(trial({"name": "muon", "lr": 0.1}).optimizer, nn.Conv2d(1, 1, 3))


def test_lion_steps_as_its_paper_says():
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    module = nn.Module()
    module.weight = weight
    made = build_optimizer(trial({"name": "lion", "lr": 0.1, "weight_decay": 0.5}).optimizer, module)
    weight.grad = torch.tensor([1.0, -1.0, 0.0])
    made.step()
    assert weight.tolist() == pytest.approx([0.95 - 0.1, -1.9 + 0.1, 2.85])
    assert made.state[weight]["average"].tolist() == pytest.approx([0.01, -0.01, 0.0])
    weight.grad = torch.tensor([-0.05, 1.0, 0.0])  # 0.9 * 0.01 - 0.1 * 0.05 is positive still
    made.step()
    assert weight.tolist() == pytest.approx([0.85 * 0.95 - 0.1, -1.8 * 0.95 - 0.1, 2.85 * 0.95])


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"name": "torch.optim:RMSProp", "lr": 0.1}, "did you mean 'RMSprop'"),
        ({"name": "torch.optim:RMSprop", "lr": 0.1, "options": {"alhpa": 0.1}}, r"optimizer\.options\.alhpa"),
        ({"name": "torch.optim:Rprop", "lr": 0.1, "weight_decay": 0.1}, r"optimizer\.weight_decay"),
        ({"name": "torch.optim:RMSprop", "lr": 0.1, "options": {"alpha": -1}}, "Invalid alpha"),
        ({"name": "torch.nn:Linear", "lr": 0.1}, r"optimizer\.lr: found that torch\.nn:Linear has no 'lr'"),
        ({"name": "math:sqrt", "lr": 0.1}, "allowed: one of \\(options, network\\)"),
    ],
)
def test_what_is_wrong_with_an_optimizer_of_ones_own_is_told(optimizer, told):
    with pytest.raises(PartError, match=told):
        build_optimizer(trial(optimizer).optimizer, nn.Linear(2, 2))
