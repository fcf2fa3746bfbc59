"""Workers that train alone between exchanges."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from lqray.communication.checks.replicas import checksum
from lqray.experiment import names
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.training import loop
from lqray.training.batches import Batches
from lqray.training.dataset import load_dataset
from lqray.training.models import build_model
from lqray.training.nonfinite import DivergedError
from lqray.training.reports import Report
from lqray.training.steps.fragments import fragments_of
from lqray.training.steps.sender import Sent
from lqray.training.worker import run_worker
from tests.testing.methods import EXCHANGED, REDUCTIONS
from tests.testing.poisoned import Poisoned
from tests.testing.ranks import run_ranks

MEAN = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}


def trial(every: int | None = 4, exchange: dict | None = None, **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [32, 16]},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"iterations": 14, "batch_size": 8, "evaluate_every": 100},
        "quantizer": {"method": "full_precision"},
        "exchange": {"every": every, "outer": {"optimizer": "nesterov", "lr": 0.7}} | (exchange or {}),
        "telemetry": {"every": 3},
        "workers": 4,
    }
    return Trial.model_validate(config | changes)


def run(chosen: Trial) -> tuple[dict[str, float], list[Report], dict[str, torch.Tensor]]:
    """(final metrics, reports, the network's state)."""
    reports: list[Report] = []
    states: list[dict[str, torch.Tensor]] = [{}]

    def after_step(stepped) -> None:
        states[0] = {name: value.clone() for name, value in stepped.network.state_dict().items()}

    final = run_worker(chosen, reports.append, torch.device("cpu"), 1, after_step=after_step)
    return final, reports, states[0]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_mean_of_parameters_after_every_step_is_data_parallel_training():
    """With plain SGD: the mean of steps is the step along the mean."""
    plain = {"optimizer": {"name": "sgd", "lr": 0.1}}
    apart, together = run(trial(1, {"outer": MEAN}, **plain))[2], run(trial(None, **plain))[2]
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, rtol=1e-5, atol=1e-6)
    other = run(trial(4, {"outer": MEAN}, **plain))[2]
    assert not all(torch.allclose(other[name], value, rtol=1e-5, atol=1e-6) for name, value in together.items())


@pytest.mark.parametrize("method", ["topk", "signsgd", "bf16"])
def test_a_compressor_after_every_step_is_that_of_data_parallel_training(method):
    """What rounds at random has other noise, as buckets are numbered otherwise. A rate that is a power of two scales
    without rounding; differences of parameters have rounding of their own."""
    common = {"optimizer": {"name": "sgd", "lr": 0.125}, "quantizer": {"method": method}}
    by_layer = {"buckets": "layer"} if method != "bf16" else {}
    apart, together = run(trial(1, {"outer": MEAN} | by_layer, **common))[2], run(trial(None, by_layer, **common))[2]
    exact = run(trial(None, optimizer=common["optimizer"]))[2]

    def apart_by(one: dict, other: dict) -> float:
        return math.sqrt(sum(float((one[name] - value).square().sum()) for name, value in other.items()))

    assert apart_by(apart, together) < 0.05 * apart_by(exact, together)


@pytest.mark.parametrize("method", ["full_precision", "sgd"])
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_one_worker_whose_mean_is_taken_trains_as_alone(method, dtype):
    """To the bit, with momentum, BatchNorm and dropout; with overlap, steps beside an exchange are given up."""
    model = {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2, "dtype": dtype}
    common = {"workers": 1, "model": model, "quantizer": {"method": method}}
    alone, apart, in_turn = (
        run(trial(every, {"outer": MEAN} | more, **common))
        for every, more in ((None, {}), (4, {}), (4, {"fragments": 3}))
    )
    for other in (apart, in_turn):
        assert other[0]["test/loss"] == alone[0]["test/loss"]
        assert same(other[2], alone[2])
    assert not same(run(trial(4, {"outer": MEAN, "overlap": 2}, **common))[2], alone[2])


def in_processes(rank: int, config: dict) -> tuple[dict[str, float], list[int]]:
    """Final metrics, the checksum of the network, buffers too, after each step."""
    sums: list[int] = []

    def after_step(stepped) -> None:
        sums.append(checksum(stepped.network))

    chosen = Trial.model_validate(config)
    final = run_worker(chosen, lambda report: None, torch.device("cpu"), 1, after_step=after_step)
    return final, sums


SEVERAL = {
    "eden": {"quantizer": {"method": "eden", "bits": 2, "bucket_size": 64}},
    "alq": {
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [0, 2], "samples": 2},
        "exchange": {"error_feedback": True, "fragments": 3, "overlap": 2, "mixing": 0.5, "buckets": "layer"},
        "model": {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2},
    },
    "hosts": {
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [0, 2], "samples": 2},
        "exchange": {
            "reduction": "hierarchical",
            "hosts": 2,
            "within": "bf16",
            "error_feedback": True,
            "fragments": 2,
            "overlap": 1,
        },
    },
}


@pytest.mark.processes
@pytest.mark.parametrize("kind", SEVERAL)
def test_it_does_not_matter_how_many_processes_share_the_workers(kind):
    config = trial(**SEVERAL[kind]).config()
    found = {world: run_ranks(in_processes, world, config) for world in (1, 2, 4)}
    final, expected = found[1][0]
    assert len(set(expected)) > 3
    for metrics, sums in itertools.chain(*found.values()):
        assert sums == expected
        assert metrics["test/loss"] == pytest.approx(final["test/loss"], rel=1e-6)


EDEN = {"method": "eden", "bits": 2, "bucket_size": 64}
ALQ = {"method": "alq", "bucket_size": 64, "update_at": [0, 1], "samples": 2}
OPTIONS = {
    "skipped parameters": ({"skip": ["bias", "norm"], "skip_below": 100}, EDEN),
    "many buckets": ({"bucket_cap_mb": 0.001, "skip": ["norm"]}, EDEN),
    "by layer": ({"buckets": "layer", "error_feedback": True, "feedback_decay": 0.5, "feedback_reset": 3}, ALQ),
    "levels by layer": ({"error_feedback": "scaled"}, ALQ | {"levels": "layer", "levels_from": 100}),
    "bits by parameter": ({"buckets": "layer"}, {"method": "slopes", "bits": {"*.weight": 2, "default": 4}}),
    "correlated": ({"rounding": "correlated", "entropy": "rans"}, {"method": "qsgd_inf", "bucket_size": 64}),
    "both stages": (
        {"reduction": "scatter_reduce", "error_feedback": True, "feedback_stages": "both", "entropy": "rans"},
        {"method": "topk"},
    ),
    "second moments": ({"precondition": True, "reduction": "scatter_reduce"}, EDEN),
    "later": ({"quantize_from": 2}, ALQ),
    "only measured": ({"trajectory": "full_precision"}, ALQ),
}


def with_options(rank: int, configs: dict[str, dict]) -> dict[str, tuple[dict[str, float], list[int]]]:
    return {kind: in_processes(rank, config) for kind, config in configs.items()}


@pytest.mark.processes
def test_every_option_of_the_exchange_is_one_of_differences():
    """Of fragments, two of which are under way at a time; in one process and in two."""
    exchange = {"fragments": 4, "overlap": 3, "mixing": 0.25}
    common = {"workers": 2, "model": {"name": "wide_resnet", "depth": 10, "width": 1}, "telemetry": {"every": 4}}
    common["schedule"] = {"iterations": 9, "batch_size": 8}
    configs = {
        kind: trial(4, exchange | own, quantizer=quantizer, **common).config()
        for kind, (own, quantizer) in OPTIONS.items()
    }
    one, two = (run_ranks(with_options, world, configs)[0] for world in (1, 2))
    assert len({tuple(sums) for _, sums in one.values()}) == len(OPTIONS)
    for kind, (final, sums) in one.items():
        assert sums == two[kind][1], kind
        assert 0 < final["quantizer/mean_nmse"] < 3, kind


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("method", [name for name in names.methods() if name != "post_local_sgd"])
def test_every_method_exchanges_differences(method, reduction):
    workers = {"workers": 1} if method == "sgd" else {"workers": 2}
    exchange = {"reduction": reduction, "fragments": 2, "overlap": 1, "mixing": 0.3}
    short = {"iterations": 6, "batch_size": 8}
    final, reports, _ = run(trial(3, exchange, quantizer={"method": method}, schedule=short, **workers))
    assert final["test/loss"] < 100
    lost = [one.metrics for one in reports if "outer/norm" in one.metrics]
    assert all(0 < one["outer/norm"] < 10 and -1 <= one["outer/cosine"] <= 1 + 1e-9 for one in lost)
    assert lost


@pytest.mark.processes
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_method_ends_in_the_same_bits_in_one_to_four_processes(reduction):
    """Twelve workers. Of what stays in full precision, and of torch's casts, to the order of sums."""
    plain = ["full_precision", "bf16"]
    common = {"schedule": {"iterations": 4, "batch_size": 2, "evaluate_every": 100}, "workers": 12}
    common["model"] = {"name": "mlp", "layers": [8]}
    exchange = {"reduction": reduction, "fragments": 2, "overlap": 1}
    configs = {name: trial(2, exchange, quantizer={"method": name}, **common).config() for name in EXCHANGED + plain}
    expected, *others = (run_ranks(with_options, world, configs) for world in (1, 2, 3, 4))
    for rank, method in itertools.product(itertools.chain(*others), configs):
        loss, sums = rank[method][0]["test/loss"], rank[method][1]
        assert loss == pytest.approx(expected[0][method][0]["test/loss"], rel=1e-3 if method == "bf16" else 1e-5), (
            method
        )
        assert method in plain or sums == expected[0][method][1], method


REFERENCES = {
    "sgd": ({"lr": 0.5, "momentum": 0.0}, torch.optim.SGD, {"lr": 0.5}),
    "nesterov": ({"lr": 0.7}, torch.optim.SGD, {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
    "adam": ({"lr": 0.1}, torch.optim.Adam, {"lr": 0.1, "betas": (0.9, 0.95), "eps": 0.1}),
}


@pytest.mark.parametrize("outer", REFERENCES)
@pytest.mark.parametrize(("fragments", "overlap", "mixing"), [(1, 0, 0.0), (3, 0, 0.0), (3, 2, 0.25), (2, 4, 0.0)])
def test_the_reference_of_the_documentation_ends_in_the_same_bits(outer, fragments, overlap, mixing):
    options, made, given = REFERENCES[outer]
    exchange = {"fragments": fragments, "overlap": overlap, "mixing": mixing, "outer": {"optimizer": outer, **options}}
    chosen = trial(5, exchange)
    found = run(chosen)[2]
    namespace: dict = {}
    text = (Path(__file__).parents[3] / "docs/guide/local-steps.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], namespace)
    dataset = load_dataset(chosen.data)
    torch.manual_seed(derive_seed(chosen.seed, "model"))
    network = build_model(chosen.model, dataset.shape, dataset.classes)
    batches = Batches(dataset.train_examples, chosen.schedule.batch_size, chosen.workers, chosen.seed)

    def backward(own: torch.nn.Module, iteration: int, worker: int) -> None:
        inputs, labels = dataset.train_batch(batches.indices(iteration, worker), 0)
        torch.nn.functional.cross_entropy(own(inputs), labels).backward()

    namespace["train_apart"](
        network,
        backward,
        workers=4,
        iterations=14,
        every=5,
        inner=lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9),
        outer=lambda parameters: made(parameters, **given),
        fragments=[fragment.names for fragment in fragments_of(network, fragments)],
        overlap=overlap,
        mixing=mixing,
    )
    assert same(found, network.state_dict())


def poisoned(rank: int, config: dict, number: int) -> str | dict[str, float]:
    """What comes of a run in which rank 0 sees a NaN in its batch of this number: an error, or final metrics."""
    chosen, before = Trial.model_validate(config), loop.load_dataset
    dataset = load_dataset(chosen.data)
    loop.load_dataset = lambda options: Poisoned(dataset, -1 if rank else number)
    try:
        return run_worker(chosen, lambda report: None, torch.device("cpu"), 1)
    except DivergedError as error:
        return str(error)
    finally:
        loop.load_dataset = before


@pytest.mark.parametrize(
    "method", [name for name in names.methods() if name not in ("sgd", "powersgd", "post_local_sgd")]
)
def test_what_is_not_finite_ends_the_run_at_the_next_exchange(method):
    found = poisoned(0, trial(workers=2, quantizer={"method": method}, telemetry={"every": 0}).config(), 9)
    assert re.match(r"the exchanged difference of .* is not finite at iteration 7; try a smaller lr", found)


@pytest.mark.processes
@pytest.mark.parametrize("method", ["full_precision", "eden"])
def test_it_ends_on_all_ranks_alike(method):
    config = trial(workers=2, quantizer={"method": method}, telemetry={"every": 0}).config()
    found = run_ranks(poisoned, 2, config, 4)
    assert found[0] == found[1]
    assert "is not finite at iteration 7" in found[0]


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
def test_a_step_that_is_not_finite_is_left_out_by_its_worker_alone(world):
    schedule = {"iterations": 14, "batch_size": 8, "on_nonfinite": "skip"}
    model = {"name": "wide_resnet", "depth": 10, "width": 1}
    config = trial(workers=2, schedule=schedule, model=model, quantizer={"method": "alq", "bucket_size": 64}).config()
    for final in run_ranks(poisoned, world, config, 8 // world):
        assert final["train/skipped_steps"] == 1
        assert math.isfinite(final["test/loss"])


def test_skipping_for_ever_stops():
    schedule = {"iterations": 120, "batch_size": 4, "on_nonfinite": "skip"}
    with pytest.raises(DivergedError, match=r"worker \d skipped its last 1\d\d steps"):
        run(trial(optimizer={"name": "sgd", "lr": 1e25}, schedule=schedule))


def test_how_far_workers_came_is_told_where_a_measurement_was_due():
    """One worker whose parameters are taken: what is shared moves as far as it came, in its direction."""
    shared: dict[int, torch.Tensor] = {}
    reports: list[Report] = []

    def after_step(stepped) -> None:
        shared[stepped.done] = torch.cat([one.detach().clone().reshape(-1) for one in stepped.network.parameters()])

    chosen = trial(4, {"outer": MEAN}, workers=1, telemetry={"every": 6})
    run_worker(chosen, reports.append, torch.device("cpu"), 1, after_step=after_step)
    found = {one.iteration: one.metrics for one in reports if "outer/norm" in one.metrics}
    assert list(found) == [4, 8, 14]  # measurements after steps 1, 7 and 13; none between the exchanges at 8 and at 12
    assert found[8]["outer/norm"] == pytest.approx(float((shared[8] - shared[4]).norm()), rel=1e-5)
    assert found[8]["outer/cosine"] == pytest.approx(1)
    assert [one.iteration for one in reports if "train/loss" in one.metrics] == [1, 7, 13]


@pytest.mark.parametrize("method", ["full_precision", "eden"])
def test_nobody_waits_for_an_exchange_before_its_result_is_due(method, monkeypatch):
    """Sent after steps 5, 10 and 14 of 14, asked for within steps 7, 12 and 14; a checkpoint or a measurement would."""
    asked: list[int] = []
    means, done = Sent.means, [0]

    def noted(self):
        asked.append(done[0] + 1)
        return means(self)

    def after_step(stepped) -> None:
        done[0] = stepped.done

    monkeypatch.setattr(Sent, "means", noted)
    chosen = trial(5, {"overlap": 2}, quantizer={"method": method}, telemetry={"every": 0})
    run_worker(chosen, lambda report: None, torch.device("cpu"), 1, after_step=after_step)
    assert asked == [7, 12, 14]


def test_each_worker_s_own_gradient_is_clipped():
    """At the first step, where all have equal parameters, one worker's norm is that of data-parallel training."""
    clipped = {"optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": 0.5}, "workers": 1}
    alone, apart = (run(trial(every, **clipped))[1][0].metrics for every in (None, 4))
    assert apart["train/gradient_norm"] == alone["train/gradient_norm"] > 0.5
    assert apart["train/clipped"] == alone["train/clipped"]
    several = run(trial(4, **clipped | {"workers": 4}))[1]
    assert all(one.metrics["train/clipped"] < 1 for one in several if "train/loss" in one.metrics)


def test_losses_of_what_is_sent_are_measured_and_levels_fitted():
    quantizer = {"method": "alq", "bucket_size": 64, "update_at": [0, 2]}
    final, reports, _ = run(trial(quantizer=quantizer, telemetry={"every": 3, "moments": True}))
    assert 0.01 < final["quantizer/mean_nmse"] < 1
    assert 0.01 < final["quantizer/mean_moment_nmse"] < 100
    levels = [one.metrics["quantizer/level/1"] for one in reports if "quantizer/level/1" in one.metrics]
    assert len(levels) == 4
    assert len(set(levels)) == 2  # telemetry is read after the fit: that of exchange 0, that of exchange 2
    assert reports[-1].snapshot["iteration"] == 14


def traffic(rank: int, config: dict) -> dict[str, float]:
    return run_worker(Trial.model_validate(config), lambda report: None, torch.device("cpu"), 1)


@pytest.mark.processes
def test_bytes_are_those_of_all_exchanges_over_all_steps():
    """n coordinates after steps 4, 8, 12 and 14, in float32 by a ring of two."""
    config = trial(workers=2).config()
    n = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    for final in run_ranks(traffic, 2, config):
        assert final["wire/total_bytes_sent"] == 4 * 4 * n
        assert final["wire/bytes_sent"] == pytest.approx(4 * 4 * n / 14)
        assert final["wire/bits_per_coordinate"] == pytest.approx(32 * 4 / 14, rel=1e-4)
        assert final["wire/ratio_to_float32"] == pytest.approx(14 / 4, rel=1e-4)


@pytest.mark.processes
def test_bytes_within_and_between_hosts_are_those_of_all_exchanges_over_all_steps():
    """Of n coordinates each of two processes of a host sends half of the signs and norms to the other host."""
    exchange = {"reduction": "hierarchical", "hosts": 2, "every": 4}
    config = trial(exchange=exchange, quantizer={"method": "signsgd", "bucket_size": 64}).config()
    n = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    half = -(-(4 * -(-n // 64) + 4 * -(-n // 32)) // 2) + 4  # and four bytes of a check
    inside = 2 * 4 * n // 2 + 2 * half
    for final in run_ranks(traffic, 4, config):
        assert final["wire/total_bytes_sent"] == 4 * (half + inside)
        assert final["wire/bytes_between_hosts"] == pytest.approx(4 * half / 14)
        assert final["wire/bytes_within_hosts"] == pytest.approx(4 * inside / 14)
        assert final["wire/payload_bytes"] == pytest.approx(4 * 2 * half / 14)


@pytest.mark.parametrize(
    ("section", "value", "key"),
    [
        ("exchange", {"every": 4, "precondition": "optimizer"}, "exchange.precondition"),
        ("quantizer", {"method": "alq", "sampling": "fresh"}, "quantizer.sampling"),
        ("telemetry", {"samples": 2}, "telemetry.samples"),
        ("exchange", {"every": 4, "fragments": 5}, "at most `every` fragments"),
        ("exchange", {"every": 4, "overlap": 4}, "an overlap below `every`"),
        ("exchange", {"every": 4, "outer": {"optimizer": "nesterov", "momentum": 0.0}}, "needs a momentum above 0"),
    ],
)
def test_what_workers_alone_cannot_have_is_refused(section, value, key):
    exchange = value if section == "exchange" else {}
    others = {} if section == "exchange" else {section: value}
    with pytest.raises(ValidationError) as error:
        trial(4, exchange, optimizer={"name": "adam", "lr": 0.1}, **others)
    assert key in str(error.value) or key in str(error.value.errors()[0].get("ctx"))


def test_more_fragments_than_layers_are_refused():
    with pytest.raises(ValueError, match=r"exchange\.fragments: 4, of a network that has 3 layers"):
        run(trial(4, {"fragments": 4}))
