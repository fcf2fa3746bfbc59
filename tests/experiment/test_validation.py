"""What an experiment file may not say, and where each error points."""

import pytest

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import Experiment
from lqray.experiment.layout import read_layout
from lqray.experiment.schema import Resources, Search, Storage, Tracking, Trial
from lqray.experiment.yaml import parse
from tests.testing.experiments import BASE, experiment


@pytest.mark.parametrize(
    ("sweep", "key", "found", "hint"),
    [
        ("sweep: []", "sweep", "an empty list", "single trial"),
        ("sweep: [{matrix: {}}]", "sweep[0].matrix", "an empty matrix", None),
        ("sweep: [{matrix: {seed: []}}]", "sweep[0].matrix.seed", "an empty list", None),
        ("sweep: [{matrix: {seed: 3}}]", "sweep[0].matrix.seed", "3", "[value]"),
        ("sweep: [{matrix: {seed: [1, 1]}}]", "sweep[0].matrix.seed[1]", "1 a second time", None),
        ("sweep: [{matrix: {quantizer.bit: [1]}}]", "sweep[0].matrix.quantizer.bit", "unknown key", "quantizer.bits"),
        ("sweep: [{matrix: {sed: [1]}}]", "sweep[0].matrix.sed", "unknown key", "seed"),
        ("sweep: [{matrix: {seed.x: [1]}}]", "sweep[0].matrix.seed.x", "unknown key", None),
        ("sweep: [{matrix: {model: [{hidden: 1}], model.hidden: [2]}}]", "sweep[0].matrix.model.hidden", "both", None),
        ("sweep: [{exclude: [{seed: 1}]}]", "sweep[0]", "neither", None),
        ("sweep: [{matrix: {seed: [1]}, exclude: [{workers: 1}]}]", "sweep[0].exclude[0].workers", "no axis", None),
        ("sweep: [{matrix: {seed: [1]}, inclde: []}]", "sweep[0].inclde", "unknown key", "include"),
        ("sweep: [{matrix: {quantizer.method: [alqq]}}]", "quantizer.method", "'alqq'", "'alq'"),
        ("sweep: [{matrix: {quantizer.bits: [9]}}]", "quantizer.bits", "9", None),
        ("sweep: [{matrix: {quantizer.bits: [2.5]}}]", "quantizer.bits", "2.5", None),
        ("sweep: [{matrix: {quantizer.bits: [true]}}]", "quantizer.bits", "True", None),
        ("sweep: [{matrix: {optimizer.lr: [.nan]}}]", "optimizer.lr", "nan", None),
        ("sweep: [{matrix: {optimizer.lr: [-0.1]}}]", "optimizer.lr", "-0.1", None),
        ("sweep: [{matrix: {seed: [-1]}}]", "seed", "-1", None),
        ("sweep: [{matrix: {schedule.decay_at: [[5, 5]]}}]", "schedule.decay_at", "[5, 5]", None),
        ("sweep: [{matrix: {exchange.reduction: [ring]}}]", "exchange.reduction", "'ring'", None),
        ("sweep: [{matrix: {seed: [1]}, include: [{workers: 0}]}]", "workers", "0", None),
    ],
)
def test_bad_sweeps_say_where_what_and_how(sweep, key, found, hint):
    with pytest.raises(ExperimentError) as error:
        list(experiment(sweep).trials())
    problem = error.value.problems[0]
    assert problem.key == key
    assert found in problem.found
    assert problem.line == 1 + BASE.count("\n")
    assert problem.allowed
    if hint:
        assert problem.hint is not None
        assert hint in problem.hint


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        ("workers: 2", "workers: two", "workers", 8),
        ("bits: 3", 'bits: "3"', "quantizer.bits", 9),
        ("bits: 3", "bitz: 3", "quantizer.bitz", 9),
        ("{name: digits}", "digits", "data", 4),
        ("{name: digits}", "{}", "data.name", 4),
        ("name: cnn", "name: cnm", "model.name", 5),
        ("name: test", "name: a/b", "name", 2),
        ("base:", "bass:", "bass", 3),
        ("lr: 0.1", "lr: 0.1, momentum: 1.5", "optimizer.momentum", 6),
        ("iterations: 10, ", "", "schedule", 7),
    ],
)
def test_bad_bases_say_where(old, new, key, line):
    assert old in BASE
    with pytest.raises(ExperimentError) as error:
        document = parse(BASE.replace(old, new), "test.yaml")
        list(Experiment(document, read_layout(document)).trials())
    problem = error.value.problems[0]
    assert (problem.file, problem.line, problem.key) == ("test.yaml", line, key)


def test_all_problems_of_a_trial_are_told_at_once():
    document = parse(BASE.replace("lr: 0.1", "lr: -1").replace("bits: 3", "bits: 0"), "test.yaml")
    with pytest.raises(ExperimentError) as error:
        list(Experiment(document, read_layout(document)).trials())
    assert [problem.key for problem in error.value.problems] == ["optimizer.lr", "quantizer.bits"]


def test_bad_resources_and_tracking():
    document = parse(BASE + "resources: {processes: 0, cpu: 1}\ntracking: {uri: 3}\n", "test.yaml")
    with pytest.raises(ExperimentError) as error:
        read_layout(document)
    assert [problem.key for problem in error.value.problems] == ["resources.processes", "resources.cpu", "tracking.uri"]


def test_sections_that_do_not_go_together_say_where_that_was_set():
    """Also where each of them was validated before, with another partner."""
    sweep = (
        "\nsweep: [{matrix: {quantizer.bucket_size: [8192, 64], exchange.error_feedback: [false, true, scaled]}, "
        "exclude: [{quantizer.bucket_size: 8192, exchange.error_feedback: true}]}]"
    )
    assert [named.trial.exchange.error_feedback for named in experiment(sweep).trials()] == [
        False,
        "scaled",
        False,
        True,
        "scaled",
    ]
    blocks = (
        "sweep:\n"
        "  - matrix: {quantizer.bucket_size: [64], exchange.error_feedback: [true]}\n"
        "  - matrix: {quantizer.bucket_size: [8192], exchange.error_feedback: [false]}\n"
        "  - matrix: {exchange.error_feedback: [true], quantizer.bucket_size: [8192]}\n"
    )
    with pytest.raises(ExperimentError) as error:
        list(experiment(blocks).trials())
    problem = error.value.problems[0]
    assert problem.key == "exchange.error_feedback"
    assert problem.line == BASE.count("\n") + 4
    assert (
        "qsgd at 3 bits with buckets of 8192, which is no contraction: at least 166 times the energy" in problem.found
    )
    assert "error_feedback: scaled" in problem.allowed
    with pytest.raises(ExperimentError) as error:
        list(experiment("sweep: [{matrix: {exchange.error_feedback: [2]}}]").trials())
    problem = error.value.problems[0]
    assert (problem.key, problem.found) == ("exchange.error_feedback", "2")
    assert "scaled" in problem.allowed


def test_a_mapping_among_plain_values_is_told_at_its_own_trial():
    sweep = "sweep: [{matrix: {seed: [5]}}, {matrix: {quantizer.method: [alq], quantizer.bucket_size: [64, {a: 1}]}}]"
    found = experiment(sweep)
    assert next(found.trials()).name == "seed5-qsgd"
    with pytest.raises(ExperimentError, match=r"quantizer\.bucket_size\n  found:   a mapping"):
        list(found.trials())


def test_moments_of_an_optimizer_are_those_of_one_that_has_them():
    by_moments = "exchange.precondition: [optimizer], exchange.trajectory: [quantized, full_precision]"
    allowed = "sweep: [{matrix: {optimizer.name: [adam, adamw], " + by_moments + "}}]"
    assert len(list(experiment(allowed).trials())) == 4
    with pytest.raises(ExperimentError) as error:
        list(experiment("sweep: [{matrix: {optimizer.name: [sgd], " + by_moments + "}}]").trials())
    (problem,) = error.value.problems
    assert problem.key == "exchange.precondition"
    assert problem.found == "optimizer with sgd, which keeps no second moment of every parameter"
    assert "adamw" in problem.allowed


@pytest.mark.parametrize(
    ("more", "key", "found"),
    [
        ("exchange.hosts: [3]", "exchange.hosts", "3 for 2 workers"),
        ("exchange.hosts: [1]", "exchange.hosts", "1"),
        ("workers: [1]", "exchange.reduction", "hierarchical with 1 worker"),
        ("exchange.entropy: [rans]", "exchange.entropy", "rans with reduction: hierarchical"),
        ("quantizer.method: [alq], quantizer.sampling: [fresh]", "quantizer.sampling", "fresh with exchange.reduction"),
        ("telemetry.samples: [2]", "telemetry.samples", "2 with exchange.reduction: hierarchical"),
    ],
)
def test_hosts_that_send_for_their_workers(more, key, found):
    with pytest.raises(ExperimentError) as error:
        list(experiment(f"sweep: [{{matrix: {{exchange.reduction: [hierarchical], {more}}}}}]").trials())
    (problem,) = error.value.problems
    assert problem.key == key
    assert found in problem.found


def test_methods_that_no_host_sends_ask_nothing_of_hosts():
    of_all = (
        "exchange.reduction: [hierarchical], exchange.hosts: [2], quantizer.method: [sgd, full_precision, powersgd]"
    )
    assert len(list(experiment(f"sweep: [{{matrix: {{{of_all}, telemetry.samples: [2]}}}}]").trials())) == 3


def test_more_combinations_than_can_be_planned_are_refused_at_once():
    numbers = ",".join(map(str, range(1, 101)))
    keys = ("seed", "workers", "schedule.batch_size", "quantizer.bucket_size", "schedule.iterations")
    for text in (
        f"sweep: [{{matrix: {{{', '.join(f'{key}: [{numbers}]' for key in keys)}}}}}]",
        f"search: {{sampler: grid, space: {{{', '.join(f'{key}: {{choice: [{numbers}]}}' for key in keys)}}}}}",
    ):
        with pytest.raises(ExperimentError, match=r"10,000,000,000 combinations"):
            experiment(text)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("lr: 0.1", "lr: 1e300", "optimizer.lr"),
        ("lr: 0.1", "lr: 1e-300", "optimizer.lr"),
        ("iterations: 10", "iterations: 1000000000000", "schedule.iterations"),
        ("iterations: 10", "epochs: 1000000000000", "schedule.epochs"),
        ("workers: 2", "workers: 1000000000", "workers"),
        ("name: cnn", "name: mlp, layers: [1000000000000]", "model.layers[0]"),
        ("name: cnn", "name: mlp, layers: [1000000, 1000000]", "model"),
        ("workers: 2", "exchange: {bucket_cap_mb: 1e308}", "exchange.bucket_cap_mb"),
        ("method: qsgd, bits: 3", "method: nuqsgd, bits: 8, multiplier: 0.4", "quantizer.multiplier"),
        ("method: qsgd, bits: 3", "method: amq, bits: 2, multiplier: 0.999999999", "quantizer.multiplier"),
    ],
)
def test_numbers_that_no_trial_could_use_are_refused(old, new, key):
    with pytest.raises(ExperimentError) as error:
        list(experiment("", BASE.replace(old, new)).trials())
    assert [problem.key for problem in error.value.problems] == [key]


def test_levels_that_float32_tells_apart_are_accepted():
    for new in ("method: nuqsgd, bits: 7, multiplier: 0.4", "method: alq_inf, bits: 8, multiplier: 0.4"):
        assert list(experiment("", BASE.replace("method: qsgd, bits: 3", new)).trials())


@pytest.mark.parametrize(
    "option",
    [
        "concurrent_trials: -5",
        "concurrent_trials: 0",
        "concurrent_trials: some",
        "gpus_per_process: 1.5",
        "timeout_seconds: 1e300",
        "memory_gib_per_process: 1e300",
    ],
)
def test_resources_that_mean_nothing_are_refused(option):
    with pytest.raises(ExperimentError) as error:
        experiment(f"resources: {{{option}}}")
    assert [problem.key for problem in error.value.problems] == [f"resources.{option.partition(':')[0]}"]


def test_every_number_of_an_experiment_has_a_range():
    """Also one that is added: a number without limits is an error that waits for its trial's turn."""
    found = Trial.model_json_schema(), *(cls.model_json_schema() for cls in (Resources, Storage, Tracking, Search))
    without = []

    def walk(node, where):
        if isinstance(node, dict):
            if node.get("type") in ("integer", "number") and "enum" not in node and "const" not in node:
                low, high = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
                if not (low & set(node) and high & set(node)):
                    without.append(where)
            for key, value in node.items():
                walk(value, f"{where}.{key}")
        if isinstance(node, list):
            for value in node:
                walk(value, where)

    for schema in found:
        walk(schema, schema["title"])
    own = {"depth", "concurrent_trials", "uniform", "log_uniform", "integer"}  # their validators say what is allowed
    assert {where for where in without if not own & set(where.split("."))} == set()
