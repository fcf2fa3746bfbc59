"""`search.each`: every group of a sweep gets as many trials, of the same draws."""

from collections import defaultdict

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import experiment_from_text
from tests.testing.experiments import BASE

METHODS = "sweep: [{matrix: {quantizer.method: [qsgd, nuqsgd, alq], seed: [1, 2]}}]\n"
RATES = "space: {optimizer.lr: {log_uniform: [1e-4, 1]}}"
BITS = (
    "sweep: [{matrix: {quantizer.method: [full_precision]}}, "
    "{matrix: {quantizer.method: [qsgd], quantizer.bits: [2, 3]}}]\n"
)


def trials(text):
    return [named.trial for named in experiment_from_text(BASE + text, "test.yaml").trials()]


def test_every_group_has_the_budget_its_seeds_counted_and_the_same_draws():
    found = defaultdict(list)
    for trial in trials(METHODS + f"search: {{each: quantizer.method, trials: 8, {RATES}}}"):
        found[trial.quantizer.method].append((trial.seed, trial.optimizer.lr))
    assert {method: len(own) for method, own in found.items()} == {"qsgd": 8, "nuqsgd": 8, "alq": 8}
    assert found["qsgd"] == found["nuqsgd"] == found["alq"]
    assert len(set(found["qsgd"])) == 8
    assert {lr for seed, lr in found["alq"] if seed == 1} == {lr for seed, lr in found["alq"] if seed == 2}


def test_ids_are_those_of_as_many_samples_without_it():
    with_it = trials(METHODS + f"search: {{each: quantizer.method, trials: 8, {RATES}}}")
    without = trials(METHODS + f"search: {{samples: 4, {RATES}}}")
    assert [one.id for one in with_it] == [one.id for one in without]


def test_without_trials_it_holds_the_file_to_equal_groups():
    both = f"search: {{each: [quantizer.method, quantizer.bits], samples: 3, {RATES}}}"
    assert len(trials(BITS + both)) == 9
    with pytest.raises(ExperimentError) as error:
        trials(BITS + f"search: {{each: quantizer.method, samples: 3, {RATES}}}")
    (problem,) = error.value.problems
    assert problem.key == "search.each"
    assert problem.found == "2 trials a draw of qsgd and 1 of full_precision"
    assert "quantizer.bits" in problem.hint


@pytest.mark.parametrize(
    ("search", "key", "found"),
    [
        (f"each: quantizer.metod, {RATES}", "search.each", "quantizer.metod"),
        (f"each: quantizer.bits, {RATES}", "search.each", "which is 3 in every trial"),
        (f"each: optimizer.lr, {RATES}", "search.each", "which is searched, too"),
        (f"each: seed, trials: 7, {RATES}", "search.trials", "7, where every draw has 3 trials in each group"),
        (f"trials: 6, {RATES}", "search", ""),
        (f"each: seed, trials: 6, samples: 2, {RATES}", "search", ""),
        (
            "each: seed, trials: 4, sampler: grid, space: {optimizer.lr: {choice: [0.1, 0.2]}}",
            "search.trials",
            "4",
        ),
        (f"each: seed, sampler: optuna, {RATES}", "search.each", "optuna, which looks at all trials as one"),
        (f"each: seed, early_stopping: {{}}, {RATES}", "search.each", "early_stopping, which looks at all"),
    ],
)
def test_what_cannot_be_tuned_on_equal_terms_is_refused(search, key, found):
    with pytest.raises(ExperimentError) as error:
        trials(METHODS + f"search: {{{search}}}")
    assert error.value.problems[0].key == key
    assert found in error.value.problems[0].found


def test_a_grid_that_makes_the_budget_is_taken():
    space = "sampler: grid, space: {optimizer.lr: {choice: [0.1, 0.2]}}"
    assert len(trials(METHODS + f"search: {{each: quantizer.method, trials: 4, {space}}}")) == 12


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (f"trials: 8, {RATES}", "8 trials for each of 3 quantizer.method"),
        (
            "sampler: grid, space: {quantizer.components: {choice: [5, 6]}}",
            "4 trials for each of 1 quantizer.method; 2 for qsgd, 2 for nuqsgd, whose other draws are equal",
        ),
    ],
)
def test_expand_and_dry_run_say_the_budget(tmp_path, search, said):
    file = tmp_path / "file.yaml"
    tracking = f"tracking: {{uri: 'sqlite:///{tmp_path}/lqray.db'}}\n"
    file.write_text(BASE + tracking + METHODS + f"search: {{each: quantizer.method, {search}}}")
    for command in (["expand", str(file)], ["run", str(file), "--dry-run"]):
        shown = CliRunner().invoke(main, command)
        assert shown.exit_code == 0, shown.output
        assert said in " ".join(shown.stdout.split())
