"""Mutants of experiment files, as trees and as texts: each is a plan, or an error of our own that names its place."""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from lqray.experiment.errors import ExperimentError, UnfitTrialError
from lqray.experiment.grid import read_experiment
from lqray.orchestration.launchers.placement import PlacementError
from lqray.orchestration.plan.feasible import check_places, check_trials
from tests.testing.fuzzing import limits, mutants

pytestmark = pytest.mark.fuzz

SEARCHED = """
name: searched
base:
  data: {name: gaussian_mixture, dimension: 10}
  model: {name: mlp, layers: [8, 8]}
  optimizer: {name: adam, lr: 0.1}
  schedule: {epochs: 2, batch_size: 4, decay_at: [1]}
  workers: 2
  exchange: {skip: [bias], error_feedback: scaled}
  quantizer: {method: nuqsgd, bits: 3, multiplier: 0.4, bucket_size: 64, rotation: hadamard}
  telemetry: {every: 3, samples: 2}
sweep:
  - matrix: {quantizer.method: [nuqsgd, terngrad], seed: [1, 2]}
    exclude: [{seed: 2, quantizer.method: terngrad}]
    include: [{seed: 1, quantizer.bits: 4}, {seed: 3, model: {layers: [9]}}]
search:
  samples: 3
  space: {optimizer.lr: {log_uniform: [1e-4, 1]}, schedule.batch_size: {choice: [2, 4]}, workers: {integer: [1, 2]}}
  early_stopping: {grace_period: 2, reduction_factor: 3}
resources: {processes: 1, gpus_per_process: 0, memory_gib_per_process: 0.5, concurrent_trials: auto, timeout_seconds: 9}
tracking: {uri: "sqlite:///x.db", figures: false}
storage: {folder: x, keep: 1}
"""
TEXTS = [SEARCHED, *(file.read_text() for file in sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml")))]

# fmt: off
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 8, 0.5, -0.0, 1e-300, 1e-45, 1e38, 1e300, 10**12, 2**31, 2**63, 2**64, -(2**63),
    float("nan"), float("inf"), "", "x", "auto", "none", "1e3", "~", "$NOWHERE/x", "a\nb", "\x00", "\x1b[2J", "é" * 50,
    "x" * 100_000, "*", "[", "s3://", "s3://b/p", "file://x", "http://u:p@h", "9" * 5000, "\u202e", "..", "/", "-",
    [], [None], [[]], [1, 1], [3, 2], ["bias"], [0] * 2_000, {}, {"name": "cnn"}, {"a": {"b": [{}]}}, {"choice": [1]},
    {"uniform": [-1e308, 1e308]}, {"integer": [1, 10**30]}, {"log_uniform": [0, 1]}, [{}], [[1e9] * 3],
    {"method": "alq"},
]
_KEYS = """
    name method seed workers matrix include exclude space samples sampler quantizer model resources search . model.
    quantizer.bits model.layers optimizer.lr exchange.skip seed.x << a.b.c é storage tracking base sweep layers.0
"""
_TOKENS = """
    [ ] { } : - &a *a !!python/name:os.system !x <<: | > ' # % @ ` ? 1e999 .inf null é " \\x0a
"""
KEYS = [*_KEYS.split(), "", "x" * 5000]
TOKENS = [
    *_TOKENS.split(), ": ", "- ", "\n", "\t", "  ", "---\n", "...\n", "\x00", "\x85", "\u2028", "\ufeff",
    '"\\U00110000"', "%YAML 9.9\n---\n", "0x" + "f" * 300, "9" * 6000, "[" * 300, "{a: " * 80, "- " * 80,
]
# fmt: on


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything in a tree."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *itertools.chain.from_iterable(places(value, (*path, key)) for key, value in below)]


def mutated_tree(tree: Any, chosen: random.Random) -> Any:
    tree = copy.deepcopy(tree)
    for _ in range(chosen.randint(1, 3)):
        *above, last = chosen.choice([path for path in places(tree) if path])
        parent = tree
        for part in above:
            parent = parent[part]
        what, value = chosen.randrange(6), copy.deepcopy(chosen.choice(VALUES))
        if what == 0:
            del parent[last]
        elif what == 1:
            parent[last] = [parent[last], value]
        elif what == 2:
            parent[last] = {chosen.choice(KEYS): parent[last]}
        elif what == 3 and isinstance(parent, dict):
            parent[chosen.choice(KEYS)] = value
        elif what == 4 and isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
            parent[last] *= chosen.choice([-1, 0, 0.5, 10, 1e9, 1e-9, 2**40])
        else:
            parent[last] = value
        if not tree:
            break
    return tree


def mutated_text(text: str, chosen: random.Random) -> str:
    for _ in range(chosen.randint(1, 4)):
        begin = chosen.randrange(len(text) + 1)
        end = min(len(text), begin + chosen.choice([0, 1, 1, 5, 40]))
        what = chosen.randrange(4)
        middle = chosen.choice(TOKENS) if what == 0 else text[begin:end] * chosen.choice([0, 2, 50])
        if what == 1:
            middle = "".join(chr(ord(each) ^ 1 << chosen.randrange(7)) for each in text[begin:end])
        text = text[:begin] + middle + text[end:]
    return text


def check(text: str, folder: Path) -> str:
    """What becomes of a file: "plan", or the kind of error."""
    file = folder / "mutant.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    error = None
    with limits(seconds=10, mebibytes=500):
        try:
            experiment = read_experiment(file)
            trials = list(itertools.islice(experiment.trials(), 20))
            check_places([named.trial for named in trials], experiment.resources, inline=True)
            check_trials(trials[:5], thorough=False)
        except (ExperimentError, UnfitTrialError, PlacementError) as found:
            error = found
    if error is None:
        assert all(0 < len(named.name) <= 67 and int(named.trial.id, 16) >= 0 for named in trials)
        return "plan"
    assert len(str(error)) < 30_000
    if isinstance(error, ExperimentError):
        assert all(problem.found and problem.allowed and problem.file for problem in error.problems)
        assert all(problem.key or problem.line or "UTF-8" in problem.allowed for problem in error.problems)
    else:
        assert "." in str(error)
    return type(error).__name__


def test_every_mutant_of_a_tree_is_a_plan_or_an_error_with_its_place(tmp_path):
    trees = [yaml.safe_load(text) for text in TEXTS]
    became = {}
    for _, chosen in mutants("trees"):
        text = yaml.safe_dump(mutated_tree(chosen.choice(trees), chosen), sort_keys=False, width=10**9)
        try:
            became.setdefault(check(text, tmp_path), text)
        except BaseException as error:
            error.add_note(text[:3000])
            raise
    assert {"plan", "ExperimentError"} <= became.keys()


def test_every_mutant_of_a_text_is_a_plan_or_an_error_with_its_place(tmp_path):
    became = {}
    for _, chosen in mutants("texts"):
        text = mutated_text(chosen.choice(TEXTS), chosen)
        try:
            became.setdefault(check(text, tmp_path), text)
        except BaseException as error:
            error.add_note(repr(text[:3000]))
            raise
    assert {"plan", "ExperimentError"} <= became.keys()


@pytest.mark.parametrize("known", TEXTS, ids=lambda text: text.splitlines()[0][:20])
def test_what_is_mutated_is_a_plan_itself(known, tmp_path):
    found = check(known, tmp_path)
    assert found == "plan" or (found == "PlacementError" and "gpus_per_process" in known)
