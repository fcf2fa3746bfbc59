"""Networks in bfloat16, whose optimizers step along float32 masters."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lqray.communication.moments import OptimizerMoments
from lqray.experiment import names
from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import Trial
from lqray.training import masters
from lqray.training.checkpoint import Checkpoints
from lqray.training.export import trained_network
from lqray.training.forward import outputs, prepared
from lqray.training.loop import Stepped
from lqray.training.optimizers import build_optimizer, lr_ratios
from lqray.training.reports import Report
from lqray.training.worker import run_worker
from tests.testing.ranks import run_ranks

OPTIMIZERS = [
    *({"name": name, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.1} for name in names.optimizers()),
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decayed": "matrices"},
    {"name": "muon", "lr": 0.01, "adamw_lr": 0.002, "weight_decay": 0.1, "decayed": "matrices"},
    {"name": "torch.optim:RMSprop", "lr": 0.01, "options": {"momentum": 0.5}},
]
IDS = [f"{one['name']}{number}" for number, one in enumerate(OPTIMIZERS)]
SGD = {"name": "sgd", "lr": 0.001}


def trial(optimizer: dict = SGD, dtype: str = "bf16", **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [32], "dtype": dtype},
        "optimizer": optimizer,
        "schedule": {"iterations": 30, "batch_size": 16},
        "quantizer": {"method": "full_precision"},
        "telemetry": {"every": 5},
        "workers": 2,
    }
    return Trial.model_validate(config | changes)


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {"look": nn.Embedding(5, 4), "conv": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "one": nn.Linear(4, 3)}
    made = nn.ModuleDict(layers)
    made["again"] = nn.Linear(4, 5)
    made["again"].weight = made["look"].weight
    return prepared(made, trial().model)


def gradients(net: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(one.shape, generator=generator).to(one.dtype) for one in net.parameters()]


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Also of a float32 twin of a network in bfloat16: with the same gradients."""
    for step in steps:
        for group, ratio in zip(
            optimizer.param_groups, lr_ratios(optimizer, optimizer.param_groups[0]["lr"]), strict=True
        ):
            group["lr"] = ratio * 0.01 / (step + 1)
        for one, gradient in zip(net.parameters(), gradients(network(), step), strict=True):
            one.grad = gradient.to(one.dtype)
        optimizer.step()


def test_steps_too_small_for_bfloat16_add_up():
    """1 - 0.001 rounds to 1 in bfloat16, whose numbers below 1 are 1/256 apart."""
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(net.weight)
    optimizer = masters.build(trial(), net)
    seen = []
    for _ in range(4):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
        seen.append(net.weight.item())
    assert seen == [1.0, 0.99609375, 0.99609375, 0.99609375]
    assert float(optimizer.state_dict()["masters"]["weight"]) == pytest.approx(0.996)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_it_is_the_optimizer_of_a_float32_twin_rounded(optimizer):
    """With embeddings, norms, convolutions and a weight that two layers share, by the groups that it would have."""
    net = network()
    twin = copy.deepcopy(net).to(torch.float32)
    chosen = trial(optimizer)
    ours, theirs = masters.build(chosen, net), build_optimizer(chosen.optimizer, twin)
    assert [sum(map(Tensor.numel, group["params"])) for group in ours.param_groups] == [
        sum(map(Tensor.numel, group["params"])) for group in theirs.param_groups
    ]
    assert {one for group in ours.param_groups for one in group["params"]} == set(net.parameters())
    stepped(net, ours, range(3))
    stepped(twin, theirs, range(3))
    kept = ours.state_dict()["masters"]
    for (name, one), two in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two.to(one.dtype))
        assert torch.equal(kept[name], two) if one.dtype == torch.bfloat16 else name not in kept


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_loaded_it_goes_on_in_the_same_bits(optimizer):
    chosen, whole, cut, after = trial(optimizer), network(), network(), network()
    one, two, three = (masters.build(chosen, net) for net in (whole, cut, after))
    stepped(whole, one, range(6))
    stepped(cut, two, range(3))
    after.load_state_dict(cut.state_dict())
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    assert all(torch.equal(left, right) for left, right in zip(cut.parameters(), after.parameters(), strict=True))
    stepped(after, three, range(3, 6))
    assert all(torch.equal(left, right) for left, right in zip(whole.parameters(), after.parameters(), strict=True))
    left, right = (made.state_dict()["masters"] for made in (one, three))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_gradients_of_the_network_are_cleared_and_none_is_kept_of_the_masters():
    net = network()
    optimizer = masters.build(trial(), net)
    stepped(net, optimizer, range(1))
    assert all(one.grad is None for one in optimizer._masters.values())
    optimizer.zero_grad()
    assert all(one.grad is None for one in net.parameters())


def test_a_parameter_without_gradient_stays():
    net = network()
    before = net["one"].weight.clone()
    optimizer = masters.build(trial({"name": "adamw", "lr": 0.1, "weight_decay": 0.5}), net)
    net["conv"].weight.grad = torch.ones_like(net["conv"].weight)
    optimizer.step()
    assert torch.equal(net["one"].weight, before)
    assert set(optimizer.state) == {net["conv"].weight}


def test_the_network_is_as_it_was_also_where_its_optimizer_cannot_be_made():
    net = nn.Conv2d(1, 1, 3).to(torch.bfloat16)
    held = dict(net.named_parameters())
    with pytest.raises(UnfitTrialError, match="without weights of two dimensions"):
        masters.build(trial({"name": "muon", "lr": 0.1}), net)
    assert all(held[name] is one for name, one in net.named_parameters())


def test_a_network_of_another_dtype_than_the_options_say_has_no_masters():
    """As a user's own models were trained before there were any."""
    own = nn.Linear(2, 2).to(torch.bfloat16)
    assert type(masters.build(trial(dtype="float32"), own)) is torch.optim.SGD


def test_batch_norm_stays_float32_and_all_else_of_floating_point_is_bfloat16():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(4), nn.LayerNorm(4))
    net(torch.zeros(2, 1, 4, 4))
    net.register_buffer("table", torch.ones(3))
    net.register_buffer("count", torch.ones(3, dtype=torch.int64))
    found = {name: each.dtype for name, each in prepared(net, trial().model).state_dict().items()}
    assert found["1.num_batches_tracked"] == found["count"] == torch.int64
    assert {found[f"1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")} == {torch.float32}
    others = {dtype for name, dtype in found.items() if not name.startswith("1.") and name != "count"}
    assert others == {torch.bfloat16}
    out = outputs(net, torch.randn(2, 1, 4, 4), trial().model)
    assert out.dtype == torch.float32
    assert not torch.equal(net[1].running_mean, torch.zeros(2))


def test_inputs_that_are_no_floating_point_stay():
    net = nn.Embedding(5, 2).to(torch.bfloat16)
    assert torch.equal(outputs(net, torch.tensor([3]), trial().model), net.weight[3:4].float())


def test_moments_are_found_by_the_parameters_of_the_network():
    net = network()
    optimizer, moments = masters.build(trial({"name": "adamw", "lr": 0.01, "beta2": 0.9}), net), OptimizerMoments()
    moments.follow(optimizer, {one: name for name, one in net.named_parameters()})
    assert moments.of([("one.weight", 12)], torch.device("cpu")) is None
    stepped(net, optimizer, range(1))
    moments.check()
    for name, one in net.named_parameters():
        found = moments.of([(name, one.numel())], torch.device("cpu"))
        torch.testing.assert_close(found, one.grad.float().square().flatten())


def test_moments_of_an_optimizer_without_are_refused():
    net = network()
    optimizer = masters.build(trial({"name": "torch.optim:RMSprop", "lr": 0.01}), net)
    with pytest.raises(ValueError, match="allowed: an optimizer that keeps exp_avg_sq"):
        OptimizerMoments().follow(optimizer, {one: name for name, one in net.named_parameters()})


def test_the_network_that_is_given_away_is_float32_with_the_values_of_bfloat16(tmp_path):
    chosen = trial(workers=1, schedule={"iterations": 2, "batch_size": 16})
    run_worker(chosen, lambda report: None, torch.device("cpu"), 1, checkpoints=Checkpoints(tmp_path))
    given, done = trained_network(chosen, str(tmp_path))
    assert done == 2
    for one in given.parameters():
        assert one.dtype == torch.float32
        assert torch.equal(one, one.to(torch.bfloat16).float())


def test_what_quantizing_is_compared_with_moves_bfloat16(monkeypatch):
    reduced = []
    real = dist.all_reduce
    monkeypatch.setattr(
        dist, "all_reduce", lambda x, *args, **more: reduced.append(x.clone()) or real(x, *args, **more)
    )
    chosen = {"quantizer": {"method": "eden", "bits": 2, "bucket_size": 64}, "exchange": {"bypass": "auto"}}
    run_worker(trial(**chosen, workers=1), lambda report: None, torch.device("cpu"), 1)
    coordinates = 64 * 32 + 32 + 32 * 10 + 10
    assert {one.dtype for one in reduced if one.numel() == coordinates} == {torch.bfloat16}


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_small_gpt_is_pre_trained_in_bfloat16_as_in_float32(tmp_path, style):
    """As such models are trained today, with a shared embedding, batches in pieces, two bits of a gradient."""
    (tmp_path / "text.txt").write_text("Of all that is said here nothing is said once. " * 400)
    losses = {}
    for dtype in ("float32", "bf16"):
        chosen = trial(
            {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "decayed": "matrices", "clip_norm": 1.0},
            data={"name": "text", "root": str(tmp_path / "text.txt"), "context": 32},
            model={"name": "gpt", "style": style, "layers": 2, "heads": 2, "width": 32, "dtype": dtype},
            schedule={"iterations": 40, "batch_size": 8, "accumulate": 2, "decay": "wsd", "warm_up_share": 0.1},
            quantizer={"method": "eden", "bits": 2, "bucket_size": 64},
        )
        losses[dtype] = run_worker(chosen, lambda report: None, torch.device("cpu"), 1)["test/loss"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bf16"] < 2.5


METHODS = {
    "alq": {"quantizer": {"method": "alq", "bucket_size": 64, "update_at": [2, 9], "samples": 3}},
    "eden": {
        "quantizer": {"method": "eden", "bits": 4, "bucket_size": 64},
        "exchange": {"precondition": "optimizer"},
        "optimizer": {"name": "adamw", "lr": 0.01, "decayed": "matrices", "weight_decay": 0.1, "clip_norm": 1.0},
    },
    "full_precision": {},
    "powersgd": {"quantizer": {"method": "powersgd", "rank": 2, "start_iteration": 3}},
}


def ran(rank: int, method: str, **changes) -> tuple[list[dict[str, float]], set[torch.dtype]]:
    """Metrics of reports; dtypes of the last gradients."""
    reports: list[Report] = []
    dtypes: set[torch.dtype] = set()

    def after_step(now: Stepped) -> None:
        dtypes.update(one.grad.dtype for one in now.network.parameters() if one.grad is not None)

    chosen = trial(**{"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}} | METHODS[method] | changes)
    run_worker(chosen, reports.append, torch.device("cpu"), 1, after_step=after_step)
    return [report.metrics for report in reports], dtypes


@pytest.mark.processes
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_on_two_ranks(method):
    """That replicas are equal, the run checks itself."""
    one, two = run_ranks(ran, 2, method)
    assert one[1] == {torch.bfloat16}
    assert [step.get("test/loss") for step in one[0]] == [step.get("test/loss") for step in two[0]]
    assert one[0][-1]["test/loss"] < 1.2
    bits = one[0][0]["wire/bits_per_coordinate"]
    assert bits == 16 if method in ("full_precision", "powersgd") else bits < 5


def with_batch_norm(rank: int) -> None:
    ran(rank, "powersgd", model={"name": "resnet", "depth": 8, "dtype": "bf16"})


@pytest.mark.processes
def test_what_would_hang_is_refused():
    with pytest.raises(Exception, match="powersgd over gloo, and parameters of bfloat16 and float32"):
        run_ranks(with_batch_norm, 2)
