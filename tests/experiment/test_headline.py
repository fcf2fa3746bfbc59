"""By which metric trials are judged."""

import json
import math

import pytest
from pydantic import ValidationError

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import read_experiment
from lqray.experiment.headline import (
    Headline,
    common_headline,
    headline_of,
    higher_is_better,
    name_of,
    three_digits,
    written,
    written_beside,
    written_whole,
)
from lqray.experiment.schema import Trial

BASE = {
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 3, "batch_size": 8},
    "quantizer": {"method": "full_precision"},
}


def trial(**changes) -> Trial:
    return Trial.model_validate(BASE | changes)


def test_a_classifier_has_the_id_and_the_parameters_that_it_always_had():
    plain = trial()
    assert plain.id == trial(task={"name": "classification"}).id == trial(task={}).id
    assert not [key for key in plain.flat() if key.startswith("task")]
    assert trial(task={"label_smoothing": 0.1}).id != plain.id
    assert headline_of(plain.flat()) == headline_of({}) == Headline("test/accuracy", higher=True)


DATA = {"language_modelling": "text", "regression": "linear"}


@pytest.mark.parametrize("name", DATA)
def test_losses_are_better_when_they_are_lower(name):
    chosen = trial(data={"name": DATA[name]})
    params = chosen.params()
    assert chosen.id == trial(data={"name": DATA[name]}, task={"name": name}).id
    assert params["task.name"] == name
    headline = headline_of(params)
    assert headline == Headline("test/loss", higher=False)
    assert headline.score({"test/loss": 1.0}) > headline.score({"test/loss": 2.0})
    assert math.isnan(headline.score({}))


def test_a_metric_of_ones_own_may_be_it():
    own = trial(metrics=["my.metrics:f1"], task={"headline": "test/f1", "higher_is_better": True})
    assert headline_of(own.params()) == Headline("test/f1", higher=True)
    assert higher_is_better("test/f1", headline_of(own.params()))
    assert not higher_is_better("test/f1")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": {"headline": "test/f1"}}, "what is measured of the test set: test/loss, test/accuracy"),
        ({"task": {"higher_is_better": True}}, "task.headline beside it"),
        ({"metrics": ["my.m:f1"], "task": {"headline": "test/f1"}}, "true or false: what is better of test/f1"),
        ({"metrics": ["my.m:perplexity"], "data": {"name": "text"}}, "functions of other names"),
        ({"task": {"name": "regression"}}, "classification, which is what digits is for"),
        ({"data": {"name": "linear"}, "task": {"name": "classification"}}, "regression, which is what linear is for"),
        ({"task": {"name": "clasification"}}, "classification"),
    ],
)
def test_what_cannot_be_it_is_told(changes, told):
    with pytest.raises(ValidationError, match=told):
        trial(**changes)


def test_a_search_takes_it_where_nothing_else_is_said(tmp_path):
    file = tmp_path / "some.yaml"
    search = {
        "space": {"optimizer.lr": {"uniform": [0.1, 1.0]}},
        "early_stopping": {"metric": "test/accuracy"},
    }
    base = {**BASE, "data": {"name": "linear"}}
    file.write_text(json.dumps({"name": "some", "base": base, "search": search}))
    found = read_experiment(file).search
    assert (found.metric, found.mode) == ("test/loss", "min")
    assert (found.early_stopping.metric, found.early_stopping.mode) == ("test/accuracy", "max")


def test_a_search_for_another_metric_goes_up_as_ever(tmp_path):
    file = tmp_path / "some.yaml"
    search = {"space": {"optimizer.lr": {"uniform": [0.1, 1.0]}}, "metric": "test/f1"}
    file.write_text(json.dumps({"name": "some", "base": BASE, "search": search}))
    assert read_experiment(file).search.mode == "max"


@pytest.mark.parametrize(
    "matrix",
    [{"data.name": ["linear"], "seed": [1, 2]}, {"data": [{"name": "linear"}]}, {"data.name": ["linear", "digits"]}],
)
def test_a_file_has_that_of_its_first_trial(tmp_path, matrix):
    base = {key: value for key, value in BASE.items() if key != "data"}
    file = tmp_path / "some.yaml"
    file.write_text(json.dumps({"name": "some", "base": base, "sweep": [{"matrix": matrix}]}))
    assert read_experiment(file).headline == Headline("test/loss", higher=False)
    file.write_text(json.dumps({"name": "some", "base": BASE}))
    assert read_experiment(file, ["data={name: linear}"]).headline == Headline("test/loss", higher=False)


def test_every_trial_has_the_task_of_its_own_data(tmp_path):
    """Also where sections of other trials serve again, and something else is said of the task."""
    matrix = {"seed": [1, 2], "task.higher_is_better": [True, False], "data.name": ["digits", "linear"]}
    file = tmp_path / "some.yaml"
    base = {**BASE, "task": {"headline": "test/loss"}}
    file.write_text(json.dumps({"name": "some", "base": base, "sweep": [{"matrix": matrix}]}))
    found = [(one.trial.data.name, one.trial.task.name) for one in read_experiment(file).trials()]
    assert set(found) == {("digits", "classification"), ("linear", "regression")}


def test_an_option_of_another_task_is_told(tmp_path):
    file = tmp_path / "some.yaml"
    base = {**BASE, "data": {"name": "linear"}, "task": {"label_smoothing": 0.1}}
    file.write_text(json.dumps({"name": "some", "base": base}))
    with pytest.raises(ExperimentError, match="label_smoothing"):
        read_experiment(file)


def test_which_metric_it_is_changes_no_id():
    assert trial(task={"headline": "test/loss", "higher_is_better": False}).id == trial().id


def test_several_tasks_are_judged_by_that_of_most():
    texts, images = {"data.name": "text"}, {"data.name": "digits"}
    assert common_headline([texts, images, texts]).metric == "test/loss"
    assert common_headline([images, texts]) == common_headline([]) == Headline()


def test_how_values_are_written():
    assert written("test/accuracy", 0.98765) == "98.77%"
    assert written("test/loss", 1.23456) == "1.235"
    assert [name_of(one) for one in ("test/bits_per_byte", "train/loss")] == ["bits per byte", "train loss"]


def test_what_stands_beside_a_number_has_its_decimals():
    assert [written_beside("2.357", one) for one in (0.05449, 0.0001)] == ["0.054", "0.0001"]
    assert written_beside("98.47%", 0.00204) == "0.20"
    assert [written_whole("test/loss", one) for one in (1.79995, 2.369, 1234.0)] == ["1.800", "2.369", "1234"]
    assert written_whole("test/accuracy", 0.98) == "98.00%"
    numbers = (1482.3, 12.34, 8.0, 200.0, 2.5e7, float("inf"))
    assert [three_digits(one) for one in numbers] == ["1482", "12.3", "8.00", "200", "2.50e+07", "inf"]
