import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import Experiment, read_experiment, with_value
from lqray.experiment.layout import read_layout
from lqray.experiment.schema import Resources, Search, Storage, Tracking, Trial
from lqray.experiment.yaml import parse

BASE = """
name: test
base:
  data: {name: digits}
  model: {name: cnn}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 10, batch_size: 4}
  workers: 2
  quantizer: {method: qsgd, bits: 3, bucket_size: 64}
"""


def experiment(sweep: str, base: str = BASE) -> Experiment:
    document = parse(base + sweep, "test.yaml")
    return Experiment(document, read_layout(document))


def values(sweep: str, *keys: str) -> list[tuple]:
    return [tuple(named.trial.flat().get(key) for key in keys) for named in experiment(sweep).trials()]


def test_no_sweep_is_one_trial():
    (named,) = experiment("").trials()
    assert named.name == "qsgd"
    assert named.trial.quantizer.bits == 3


def test_the_last_axis_varies_fastest():
    sweep = "sweep: [{matrix: {quantizer.bits: [2, 3], seed: [1, 2]}}]"
    assert values(sweep, "quantizer.bits", "seed") == [(2, 1), (2, 2), (3, 1), (3, 2)]


def test_exclude_drops_partial_matches():
    sweep = """
sweep:
  - matrix: {quantizer.bits: [2, 3], seed: [1, 2]}
    exclude: [{quantizer.bits: 2}, {quantizer.bits: 3, seed: 2}]
"""
    assert values(sweep, "quantizer.bits", "seed") == [(3, 1)]


def test_include_means_what_it_means_in_a_github_actions_matrix():
    # The example of GitHub's documentation, with fruit as bits, animal as seed, color as lr, shape as workers.
    sweep = """
sweep:
  - matrix: {quantizer.bits: [2, 3], seed: [1, 2]}
    include:
      - {optimizer.lr: 0.5}
      - {optimizer.lr: 0.25, seed: 1}
      - {quantizer.bits: 2, workers: 3}
      - {quantizer.bits: 4}
      - {quantizer.bits: 4, seed: 1}
"""
    assert values(sweep, "quantizer.bits", "seed", "optimizer.lr", "workers") == [
        (2, 1, 0.25, 3),
        (2, 2, 0.5, 3),
        (3, 1, 0.25, 2),
        (3, 2, 0.5, 2),
        (4, 1, 0.1, 2),
    ]


def test_include_after_exclude_can_bring_a_combination_back():
    sweep = """
sweep:
  - matrix: {seed: [1, 2]}
    exclude: [{seed: 2}]
    include: [{seed: 2, quantizer.bits: 5}]
"""
    assert values(sweep, "seed", "quantizer.bits") == [(1, 3), (2, 5)]


def test_include_alone():
    assert values("sweep: [{include: [{seed: 3}, {seed: 4}]}]", "seed") == [(3,), (4,)]


def test_union_keeps_order_and_drops_repetitions():
    sweep = "sweep: [{matrix: {seed: [2, 1]}}, {matrix: {seed: [1, 3]}}]"
    assert values(sweep, "seed") == [(2,), (1,), (3,)]


def test_a_list_is_a_value_and_a_mapping_is_merged():
    sweep = "sweep: [{matrix: {schedule.decay_at: [[5], [3, 6]], model: [{channels: [4, 8]}, {hidden: 7}]}}]"
    got = values(sweep, "schedule.decay_at", "model.channels", "model.hidden", "model.name")
    assert got[0] == ([5], [4, 8], 64, "cnn")
    assert got[3] == ([3, 6], [16, 32], 7, "cnn")


def test_options_of_another_name_are_left_out_so_that_equal_runs_are_one_trial():
    sweep = "sweep: [{matrix: {quantizer.method: [full_precision, qsgd], quantizer.bits: [2, 3]}}]"
    assert values(sweep, "quantizer.method", "quantizer.bits") == [("full_precision", None), ("qsgd", 2), ("qsgd", 3)]


def test_sgd_has_one_worker():
    assert values("sweep: [{matrix: {quantizer.method: [sgd, qsgd]}}]", "workers") == [(1,), (2,)]


def test_names_are_made_of_what_varies():
    sweep = (
        "sweep: [{matrix: {quantizer.method: [full_precision, qsgd], quantizer.bits: [2, 3], optimizer.lr: [1e-3]}}]"
    )
    assert [named.name for named in experiment(sweep).trials()] == ["full_precision", "qsgd-bits2", "qsgd-bits3"]


def test_names_over_blocks_with_different_axes():
    sweep = "sweep: [{matrix: {quantizer.bits: [2, 3]}}, {matrix: {seed: [5]}}]"
    names = [named.name for named in experiment(sweep).trials()]
    assert names == ["bits2-seed1", "bits3-seed1", "bits3-seed5"]


def test_names_are_unique_where_endings_collide():
    sweep = "sweep: [{matrix: {data.name: [digits], schedule.decay_at: [[1], [2]], quantizer.bits: [2, 3]}}]"
    names = [named.name for named in experiment(sweep).trials()]
    assert len(set(names)) == len(names) == 4


def test_expansion_is_lazy():
    axis = ",".join(map(str, range(1000)))
    sweep = f"sweep: [{{matrix: {{seed: [{axis}], quantizer.bucket_size: [{axis.replace('0,', '', 1)}]}}}}]"
    big = experiment(sweep)
    started = time.perf_counter()
    first = list(itertools.islice(big.trials(), 3))
    assert [named.trial.seed for named in first] == [0, 0, 0]
    assert time.perf_counter() - started < 5  # a million trials would take minutes


axes = st.dictionaries(
    st.sampled_from(["quantizer.bits", "seed", "workers", "schedule.batch_size"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
    min_size=1,
)


@settings(max_examples=30)
@given(st.lists(axes, min_size=1, max_size=3))
def test_expansion_equals_a_naive_product(blocks):
    sweep = f"sweep: {[{'matrix': block} for block in blocks]}".replace("'", "")
    keys = ["quantizer.bits", "seed", "workers", "schedule.batch_size"]
    base = {"quantizer.bits": 3, "seed": 1, "workers": 2, "schedule.batch_size": 4}
    naive = []
    for block in blocks:
        for choice in itertools.product(*block.values()):
            settings = base | dict(zip(block, choice, strict=True))
            row = tuple(settings[key] for key in keys)
            if row not in naive:
                naive.append(row)
    assert values(sweep, *keys) == naive
    names = [named.name for named in experiment(sweep).trials()]
    assert len(set(names)) == len(names)


def test_with_value_leaves_the_original_alone():
    config = {"a": {"b": 1}}
    assert with_value(config, ["a", "c"], 2) == {"a": {"b": 1, "c": 2}}
    assert config == {"a": {"b": 1}}


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


@pytest.mark.parametrize(
    ("old", "new", "sweep", "overrides", "key"),
    [
        ("name: cnn", "name: mlp, hidden: 3", "", (), "model.hidden"),
        ("lr: 0.1", "lr: 0.1, beta1: 0.8", "", (), "optimizer.beta1"),
        ("name: cnn", "name: cnn, hidden: 3", "sweep: [{matrix: {model.name: [mlp, linear]}}]", (), "model.hidden"),
        ("", "", "sweep: [{matrix: {model.layers: [[3], [4]]}}]", (), "model.layers"),
        ("", "", "sweep: [{matrix: {seed: [1]}, include: [{data.root: x}]}]", (), "data.root"),
        ("", "", "search: {space: {optimizer.beta2: {uniform: [0.8, 0.9]}}}", (), "optimizer.beta2"),
        ("", "", "", ("model.layers=[3]",), "model.layers"),
        ("", "", "", ("model.name=mlp", "model.hidden=3"), "model.hidden"),
    ],
)
def test_an_option_that_no_trial_uses_is_refused(tmp_path, old, new, sweep, overrides, key):
    path = tmp_path / "test.yaml"
    path.write_text(BASE.replace(old, new) + sweep)
    with pytest.raises(ExperimentError) as error:
        read_experiment(path, overrides)
    (problem,) = error.value.problems
    assert problem.key == key
    assert key.partition(".")[2] in problem.found
    assert "belongs to" in problem.found


@pytest.mark.parametrize(
    ("new", "sweep", "overrides"),
    [
        ("name: cnn, hidden: 3", "sweep: [{matrix: {model.name: [cnn, mlp]}}]", ()),
        ("name: cnn, hidden: 3", "sweep: [{matrix: {seed: [1]}, include: [{model.name: mlp}]}]", ()),
        ("name: cnn, hidden: 3", "", ("model.name=mlp",)),  # it is the file's own cnn that uses it
        ("name: mlp, hidden: 3", "", ("model.name=cnn",)),
        ("hidden: 3", "search: {sampler: grid, space: {model.name: {choice: [mlp, cnn]}}}", ()),
    ],
)
def test_an_option_that_one_trial_uses_may_be_in_the_base(tmp_path, new, sweep, overrides):
    path = tmp_path / "test.yaml"
    path.write_text(BASE.replace("name: cnn", new) + sweep)
    assert list(read_experiment(path, overrides).trials())


def test_a_mapping_among_plain_values_is_told_at_its_own_trial():
    sweep = "sweep: [{matrix: {seed: [5]}}, {matrix: {quantizer.method: [alq], quantizer.bucket_size: [64, {a: 1}]}}]"
    found = experiment(sweep)
    assert next(found.trials()).name == "seed5-qsgd"
    with pytest.raises(ExperimentError, match=r"quantizer\.bucket_size\n  found:   a mapping"):
        list(found.trials())


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
