"""`labels` of an experiment's file: one name in rows, headings and legends; trials stay as they are."""

import csv
import io

import pytest

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import experiment_from_text, read_experiment
from lqray.experiment.plan import plan_tags
from lqray.reporting.planned import Recorded
from lqray.reporting.plot import Request, recordings_of
from lqray.reporting.report import ReportOptions, make_report, written
from tests.testing.stores import Store

YAML = """
name: known
base:
  data: {name: digits}
  model: {name: linear}
  optimizer: {name: sgd}
  schedule: {iterations: 100, batch_size: 8}
sweep:
  - matrix:
      quantizer.method: [full_precision, alq, nuqsgd]
      optimizer.lr: [0.1, 1]
      model.name: [linear, mlp]
      seed: [1, 2]
"""
LABELS = """
labels:
  quantizer.method: {nuqsgd: "NU_QSGD (ours)", full_precision: FP32}
  optimizer.lr: {heading: learning rate, values: {"1.0": high}}
  model.name: network
"""


def with_runs(folder, text):
    store = Store(folder)
    for number, named in enumerate(experiment_from_text(YAML, "known.yaml").trials()):
        tags = {"lqray.trial_id": named.trial.id}
        store.run("", 1, [0.5 + number / 100], params=named.trial.params(), tags=tags, name=named.name)
    for key, value in plan_tags("launch", text).items():
        store.client.set_experiment_tag(store.number, key, value)
    return store


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_names_headings_and_their_order_are_those_of_the_file(tmp_path):
    """Read from the file, and from what was published of it."""
    store, file = with_runs(tmp_path, YAML + LABELS), tmp_path / "known.yaml"
    file.write_text(YAML + LABELS)
    named = Recorded("known", store.uri, read_experiment(file))
    for recorded in (Recorded("known", store.uri), named):
        made = make_report([recorded], ReportOptions())
        head, _, *body = rows(written(made, "markdown"))
        assert head[:3] == ["method", "learning rate", "network"]
        assert "- FP32" in head
        methods = list(dict.fromkeys(row[0] for row in body))
        assert methods == ["NU_QSGD (ours)", "FP32", "alq"]
        assert [row[1] for row in body[:4]] == ["high", "high", "0.1", "0.1"]
        assert r"NU\_QSGD (ours) & high & linear" in written(made, "latex")
        assert "- FP32: mean difference" in written(made, "markdown")
        raw = list(csv.DictReader(io.StringIO(written(made, "csv"))))
        assert {row["quantizer.method"] for row in raw} == {"full_precision", "alq", "nuqsgd"}
        assert {row["optimizer.lr"] for row in raw} == {"0.1", "1.0"}
        drawn = [group.label for group in recordings_of([recorded], Request("curves")).groups()]
        assert drawn[:3] == [
            "NU_QSGD (ours), high, network linear",
            "NU_QSGD (ours), high, network mlp",
            "NU_QSGD (ours), learning rate 0.1, network linear",
        ]
        chosen = make_report([recorded], ReportOptions(columns=["iterations", "lr", "method"]))
        assert rows(written(chosen, "markdown"))[0] == ["iterations", "learning rate", "method"]


def test_without_labels_a_name_is_the_files_word_everywhere(tmp_path):
    store = with_runs(tmp_path, YAML)
    made = make_report([Recorded("known", store.uri)], ReportOptions())
    head, _, *body = rows(written(made, "markdown"))
    assert head[:3] == ["method", "lr", "model"]
    assert body[0][:3] == ["full_precision", "0.1", "linear"]
    assert r"full\_precision & 0.1 & linear" in written(made, "latex")
    groups = recordings_of([Recorded("known", store.uri)], Request("curves")).groups()
    assert groups[0].label == "full_precision, lr 0.1, model linear"


def test_labels_change_no_trial():
    plain, named = (list(experiment_from_text(text, "x.yaml").trials()) for text in (YAML, YAML + LABELS))
    assert [(one.name, one.trial.id) for one in plain] == [(one.name, one.trial.id) for one in named]


@pytest.mark.parametrize(
    ("labels", "key", "said"),
    [
        ("{quantizer.methd: x}", "labels.quantizer.methd", "did you mean 'quantizer.method'?"),
        ("{quantizer.method: {nuqsdg: x}}", "labels.quantizer.method.nuqsdg", "did you mean 'nuqsgd'?"),
        ('{optimizer.lr: {values: {"0.2": x}}}', "labels.optimizer.lr.values.0.2", "allowed: 0.1, 1"),
        ('{schedule.iterations: {"50": x}}', "labels.schedule.iterations.50", "allowed: 100"),
        ("{quantizer.method: [x]}", "labels.quantizer.method", "allowed: a heading"),
        ("{quantizer.method: {alq: 3}}", "labels.quantizer.method.alq", "numbers in quotes"),
        ("{quantizer.method: {heading: 3}}", "labels.quantizer.method", "numbers in quotes"),
        ("[x]", "labels", "allowed: a mapping"),
    ],
)
def test_labels_of_nothing_are_told_with_their_line(tmp_path, labels, key, said):
    file = tmp_path / "known.yaml"
    file.write_text(f"{YAML}labels: {labels}\n")
    with pytest.raises(ExperimentError) as error:
        read_experiment(file)
    (problem,) = error.value.problems
    assert problem.key == key
    assert problem.line == len(YAML.splitlines()) + 1
    assert said in str(error.value)


@pytest.mark.parametrize("labels", ["{quantizer.method: {eden: EDEN}}", "{model.dtype: {float32: FP32}}", "{}"])
def test_files_may_share_names_of_methods(tmp_path, labels):
    file = tmp_path / "known.yaml"
    file.write_text(f"{YAML}labels: {labels}\n")
    assert read_experiment(file)
