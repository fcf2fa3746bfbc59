"""How a sweep is expanded into trials: which, in which order, and what they are called."""

import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.experiment.grid import with_value
from tests.testing.experiments import experiment, values


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


def test_names_leave_out_how_seldom_gradients_are_exchanged_where_they_are_at_every_step():
    seldom = "exchange.every: [4], exchange.outer: [{optimizer: sgd, lr: 1.0, momentum: 0.0}, {optimizer: nesterov}]"
    sweep = f"sweep: [{{matrix: {{quantizer.method: [bf16]}}}}, {{matrix: {{quantizer.method: [bf16], {seldom}}}}}]"
    names = [named.name for named in experiment(sweep).trials()]
    assert names == ["bf16", "every4-sgd-lr1-momentum0", "every4-nesterov-lr0.7-momentum0.9"]


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
