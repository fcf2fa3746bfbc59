"""`search:` beside a sweep, `--set`, and the expansion against a naive one."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import Experiment, read_experiment, with_value
from lqray.experiment.id_set import IdSet
from lqray.experiment.identity import canonical
from lqray.experiment.layout import read_layout
from lqray.experiment.overrides import overridden
from lqray.experiment.schema import Trial
from lqray.experiment.yaml import parse
from tests.testing.experiments import BASE, experiment, values

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted([*(ROOT / "experiments").glob("*.yaml"), *(ROOT / "benchmarks").glob("*.yaml")])


def changed(sweep: str, *overrides: str) -> Experiment:
    document = parse(BASE + sweep, "test.yaml")
    return Experiment(document, overridden(read_layout(document), overrides))


def test_random_draws_are_known_ahead_and_the_same_for_every_combination():
    text = """
sweep: [{matrix: {quantizer.method: [qsgd, nuqsgd]}}]
search: {samples: 3, seed: 5, space: {optimizer.lr: {log_uniform: [1e-4, 1]}, quantizer.bits: {choice: [2, 4]}}}
"""
    found = values(text, "quantizer.method", "optimizer.lr", "quantizer.bits")
    assert found == values(text, "quantizer.method", "optimizer.lr", "quantizer.bits")
    assert [method for method, *_ in found] == ["qsgd"] * 3 + ["nuqsgd"] * 3
    assert [row[1:] for row in found[:3]] == [row[1:] for row in found[3:]]
    assert len({lr for _, lr, _ in found}) == 3
    assert all(1e-4 <= lr <= 1 and float(f"{lr:.6g}") == lr for _, lr, _ in found)
    other = values(text.replace("seed: 5", "seed: 6"), "optimizer.lr")
    assert other[0] != (found[0][1],)
    names = [named.name for named in experiment(text).trials()]
    assert len(set(names)) == 6
    assert names[0].startswith("qsgd-lr")


def test_what_is_set_stays_set_also_in_sections_that_the_file_does_not_have():
    found = changed("", "exchange.skip=[bias]", "telemetry.every=3")
    for _ in range(2):  # the second time all its sections are known
        (named,) = found.trials()
        assert (named.trial.exchange.skip, named.trial.telemetry.every) == (("bias",), 3)


def test_a_searched_grid_and_integers():
    text = "search: {sampler: grid, space: {quantizer.bits: {choice: [2, 3]}, seed: {choice: [1, 2]}}}"
    assert values(text, "quantizer.bits", "seed") == [(2, 1), (2, 2), (3, 1), (3, 2)]
    drawn = values("search: {samples: 40, space: {seed: {integer: [3, 5]}}}", "seed")
    assert {seed for (seed,) in drawn} == {3, 4, 5}


def test_early_stopping_alone_leaves_the_sweep_as_it_is():
    found = experiment("sweep: [{matrix: {seed: [1, 2]}}]\nsearch: {early_stopping: {grace_period: 5}}")
    assert [named.trial.seed for named in found.trials()] == [1, 2]
    assert found.search.early_stopping.grace_period == 5


@pytest.mark.parametrize(
    ("search", "key", "allowed"),
    [
        ("{}", "search", "a space to search"),
        ("{space: {sed: {choice: [1]}}}", "search.space.sed", "keys of a trial"),
        ("{space: {seed: {choice: [1], uniform: [1, 2]}}}", "search.space.seed", "exactly one of"),
        ("{space: {optimizer.lr: {uniform: [2, 1]}}}", "search.space.optimizer.lr", "low below high"),
        ("{space: {optimizer.lr: {log_uniform: [0, 1]}}}", "search.space.optimizer.lr", "low above 0"),
        ("{sampler: grid, space: {optimizer.lr: {uniform: [1, 2]}}}", "search", "is a choice"),
        ("{sampler: bayes, space: {seed: {choice: [1]}}}", "search.sampler", "'random', 'grid' or 'optuna'"),
        ("{early_stopping: {metrc: a}}", "search.early_stopping.metrc", "metric"),
    ],
)
def test_bad_searches_say_where_and_what(search, key, allowed):
    with pytest.raises(ExperimentError) as error:
        experiment(f"search: {search}")
    assert error.value.problems[0].key == key
    assert allowed in error.value.problems[0].allowed


def test_a_searched_axis_cannot_be_swept():
    with pytest.raises(ExperimentError, match="axis of the sweep"):
        experiment("sweep: [{matrix: {seed: [1]}}]\nsearch: {space: {seed: {choice: [1]}}}")


def test_set_wins_over_base_and_sweep():
    sweep = "sweep: [{matrix: {quantizer.bits: [2, 3], seed: [1, 2]}}]"
    found = changed(sweep, "quantizer.bits=5", "schedule.iterations=7", "schedule.decay_at=[3, 5]", "optimizer.lr=1e-2")
    trials = [named.trial for named in found.trials()]
    assert [(t.quantizer.bits, t.seed, t.schedule.iterations, t.optimizer.lr) for t in trials] == [
        (5, 1, 7, 0.01),
        (5, 2, 7, 0.01),
    ]
    assert trials[0].schedule.decay_at == (3, 5)
    assert [named.name for named in found.trials()] == ["seed1", "seed2"]
    assert changed(sweep, "resources.processes=1", "storage.keep=9").storage.keep == 9


@pytest.mark.parametrize(
    ("override", "key", "found", "hint"),
    [
        ("schedule.iteration=7", "schedule.iteration", "unknown key", "schedule.iterations"),
        ("resorces.processes=7", "resorces.processes", "unknown key", "resources"),
        ("resources.proceses=7", "resources.proceses", "unknown key", "resources.processes"),
        ("seed", "seed", "no '='", None),
        ("seed=-1", "seed", "-1", None),
        ("quantizer.bits=99", "quantizer.bits", "99", None),
        ("quantizer.method=alqq", "quantizer.method", "alqq", "alq"),
        ("resources.processes=0", "resources.processes", "0", None),
    ],
)
def test_set_typos_are_errors(override, key, found, hint):
    with pytest.raises(ExperimentError) as error:
        list(changed("sweep: [{matrix: {seed: [1]}}]", override).trials())
    problem = error.value.problems[0]
    assert (problem.file, problem.line, problem.key) == ("--set", None, key)
    assert found in problem.found
    assert problem.allowed
    assert hint is None or hint in (problem.hint or "")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_ids_are_those_of_a_trial_validated_as_a_whole(path):
    read = read_experiment(path)
    for named, settings in zip(read.trials(), _distinct(read), strict=True):
        config = read.layout.base
        for setting in settings:
            config = with_value(config, setting.key.split("."), setting.value)
        whole = Trial.model_validate(config)
        assert named.trial == whole
        text = json.dumps(canonical(whole), sort_keys=True, separators=(",", ":"), allow_nan=False)
        assert named.trial.id == hashlib.sha256(text.encode()).hexdigest()[:16]


def _distinct(read: Experiment):
    """The combinations of an experiment that give a trial not seen before, by whole validation."""
    seen = set()
    for settings in read.combinations():
        config = read.layout.base
        for setting in settings:
            config = with_value(config, setting.key.split("."), setting.value)
        trial_id = Trial.model_validate(config).id
        if trial_id not in seen:
            seen.add(trial_id)
            yield settings


KEYS = {"quantizer.bits": 3, "seed": 1, "workers": 2, "schedule.batch_size": 4, "quantizer.bucket_size": 64}
some_values = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
blocks = st.fixed_dictionaries(
    {"matrix": st.dictionaries(st.sampled_from([*KEYS][:4]), some_values, min_size=1)},
    optional={
        "exclude": st.lists(st.fixed_dictionaries({}), max_size=0),
        "include": st.lists(st.dictionaries(st.sampled_from([*KEYS]), st.integers(1, 4), min_size=1), max_size=2),
    },
)


def naive(given_blocks, space):
    """GitHub's rules for include, then the draws, then each trial once; written apart from lqray's own."""
    rows = []
    for block in given_blocks:
        matrix, includes = block["matrix"], block.get("include", [])
        combos = [
            {"own": dict(zip(matrix, choice, strict=True)), "extra": {}}
            for choice in itertools.product(*matrix.values())
        ]
        alone = []
        for include in includes:
            hits = [c for c in combos if all(c["own"].get(k, v) == v for k, v in include.items())]
            for hit in hits:
                hit["extra"].update(include)
            if not hits:
                alone.append(include)
        rows += [{**c["own"], **c["extra"]} for c in combos] + alone
    drawn = [dict(zip(space, choice, strict=True)) for choice in itertools.product(*space.values())]
    result = []
    for row in rows:
        for draw in drawn:
            settings = KEYS | row | draw
            if settings not in result:
                result.append(settings)
    return result


@hypothesis_settings(max_examples=30)
@given(st.lists(blocks, min_size=1, max_size=3), st.dictionaries(st.just("quantizer.bucket_size"), some_values))
def test_expansion_equals_a_naive_one(given_blocks, space):
    text = f"sweep: {json.dumps(given_blocks)}\n"
    if space:
        text += "search: " + json.dumps({"sampler": "grid", "space": {k: {"choice": v} for k, v in space.items()}})
    found = list(experiment(text).trials())
    assert [{key: named.trial.flat()[key] for key in KEYS} for named in found] == naive(given_blocks, space)
    assert len({named.name for named in found}) == len({named.trial.id for named in found}) == len(found)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=300))
def test_id_set_is_a_set(numbers):
    ids, known = IdSet(), set()
    for number in [*numbers, *numbers]:
        key = max(number, 1)
        assert ids.add(f"{number:016x}") == (key not in known)
        known.add(key)
    assert len(ids) == len(known)
