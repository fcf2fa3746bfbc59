"""Options that no trial uses are refused; what one trial uses may stand in the base."""

import pytest

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import read_experiment
from tests.testing.experiments import BASE


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
        ("", "", "sweep: [{matrix: {exchange.fragments: [1, 2]}}]", (), "exchange.fragments"),
        ("", "", "sweep: [{matrix: {exchange.every: [null]}}]", ("exchange.outer.lr=0.5",), "exchange.outer.lr"),
        ("", "", "", ("model.name=mlp", "model.hidden=3"), "model.hidden"),
        ("workers: 2", "workers: 2\n  exchange: {hosts: 2}", "", (), "exchange.hosts"),
        ("", "", "sweep: [{matrix: {exchange.reduction: [all_gather]}}]", ("exchange.within=bf16",), "exchange.within"),
        ("", "", "", ("exchange.reduction=scatter_reduce", "exchange.hosts=2"), "exchange.hosts"),
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
        ("name: cnn", "sweep: [{matrix: {exchange.hosts: [2], exchange.reduction: [all_gather, hierarchical]}}]", ()),
        (
            "name: cnn",
            "search: {sampler: grid, space: {exchange.reduction: {choice: [hierarchical]}}}",
            ("exchange.hosts=2",),
        ),
        ("name: cnn", "", ("exchange.reduction=hierarchical", "exchange.within=bf16")),
        ("hidden: 3", "search: {sampler: grid, space: {model.name: {choice: [mlp, cnn]}}}", ()),
    ],
)
def test_an_option_that_one_trial_uses_may_be_in_the_base(tmp_path, new, sweep, overrides):
    path = tmp_path / "test.yaml"
    path.write_text(BASE.replace("name: cnn", new) + sweep)
    assert list(read_experiment(path, overrides).trials())
