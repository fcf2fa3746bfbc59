"""The view of an experiment for the MLflow UI, and its publication in a store."""

import math
import re
from dataclasses import replace

import pytest

from lqray.experiment.layout import CLAIMS
from lqray.reporting import ui_publish
from lqray.reporting.comparison import compare_groups
from lqray.reporting.records import read_records
from lqray.reporting.ui_publish import publish_view
from lqray.reporting.ui_view import KEY, TAG, envelope, group_name, state_of, view_state
from lqray.store.experiments import UnknownExperimentError, experiment_tags
from lqray.store.runs import read_runs
from lqray.store.tags import DIFFERENCE, GROUP
from tests.testing.reports import record
from tests.testing.stores import Store

SENT = "wire/total_bytes_sent"


def some_records():
    made = [
        replace(record("full_precision", seed), run_id=f"f{seed}", metrics={"test/accuracy": 0.9, SENT: 32.0})
        for seed in (1, 2)
    ]
    for bits in ("2", "3.0"):
        for seed in (1, 2):
            one = record("alq", seed, quantizer__bits=bits)
            metrics = {"test/accuracy": 0.8, SENT: 3.0, "quantizer/level/0": 0.1, "quantizer/variance_ratio": 2.0}
            made.append(replace(one, run_id=f"a{bits}{seed}", metrics=metrics))
    return made


def state_for(records):
    return view_state(records, compare_groups(records, "", histories=False))


def test_columns_are_method_bits_bytes_headline_and_difference_in_this_order():
    state = state_for(some_records())
    assert state["selectedColumns"][:6] == [
        "params.`quantizer.method`",
        "params.`quantizer.bits`",
        "metrics.`wire/bits_per_coordinate`",
        f"metrics.`{SENT}`",
        "metrics.`test/accuracy`",
        f"metrics.`{DIFFERENCE}`",
    ]
    assert state["columnOrder"] == state["selectedColumns"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/accuracy`", False)


def test_charts_come_in_an_open_section_before_all_that_the_ui_adds():
    state = state_for(some_records())
    first, *others = state["compareRunSections"]
    charts = state["compareRunCharts"]
    assert {one["metricSectionId"] for one in charts} == {first["uuid"]}
    assert first["display"]
    assert not any(one["display"] for one in others)
    assert "quantizer/level" in [one["name"] for one in others]
    assert [one["name"] for one in others[-2:]] == ["varied", "axis"]
    lines = [(one["metricKey"], one["xAxisKey"], one["scaleType"]) for one in charts if one["type"] == "LINE"]
    assert lines == [
        ("test/accuracy", "step", "linear"),
        ("test/accuracy", "metric", "linear"),
        ("quantizer/variance_ratio", "step", "log"),
    ]
    assert charts[1]["selectedXAxisMetricKey"] == SENT
    assert [one["metricKey"] for one in charts if one["type"] == "BAR"] == [DIFFERENCE, "time/seconds_per_step"]


def test_without_a_baseline_nothing_differs_from_it():
    state = state_for([one for one in some_records() if one.method == "alq"])
    assert DIFFERENCE not in str(state)


def test_of_more_runs_than_the_ui_loads_the_baseline_comes_first():
    many = [replace(one, run_id=f"{one.run_id}{number}") for number in range(20) for one in some_records()]
    assert state_for(many)["orderByKey"] == "metrics.`wire/bits_per_coordinate`"
    assert not state_for(many)["orderByAsc"]


def test_a_group_is_called_by_its_method_and_settings():
    keys = {"quantizer.method": "eden", "quantizer.bits": "3.0", "exchange.every": "null", "quantizer.rank": None}
    assert group_name(keys) == "eden, bits 3"
    assert group_name({"quantizer.method": "bf16"}) == "bf16"


def test_a_view_is_read_back_and_what_is_none_is_not():
    state = state_for(some_records())
    assert state_of(envelope(state)) == state
    assert len(envelope(state)) < 5000
    for odd in ("", "[]", "{}", '{"state": 3}', '{"state": "deflate;x"}', '{"state": "deflate;eJw="}'):
        assert state_of(odd) is None


@pytest.fixture
def made(tmp_path):
    store = Store(tmp_path)
    for seed in (1, 2):
        store.run("full_precision", seed, [0.5, 0.9], metrics={SENT: 32.0})
        store.run("alq", seed, [0.5, 0.8 + 0.01 * seed], metrics={SENT: 3.0}, params={"quantizer.bits": 3})
    store.run("alq", 3, [0.5], status="FAILED", params={"quantizer.bits": 3})
    return store


def shown(store):
    runs = read_runs(store.uri, "known", [GROUP], [DIFFERENCE], params=False)
    return {one.name: (one.tags.get(GROUP), one.metrics.get(DIFFERENCE)) for one in runs}


def test_published_runs_have_their_group_and_difference_and_reports_know_of_neither(made, tmp_path):
    before = read_records(made.uri, "known")
    published = publish_view(made.uri, "known")
    assert published.missing is None
    assert published.path.endswith(f"&viewStateShareKey={KEY}")
    assert re.match(rf"/#/experiments/{made.number}/runs\?", published.path)
    found = shown(made)
    assert found["alq-seed1"] == ("alq", pytest.approx(-0.09))
    assert found["alq-seed2"][1] == pytest.approx(-0.08)
    assert found["alq-seed3"] == ("alq", None)
    assert found["full_precision-seed1"] == ("full_precision", 0.0)
    assert read_records(made.uri, "known") == before


def test_only_what_changed_is_written_again(made, monkeypatch):
    publish_view(made.uri, "known")
    tag = experiment_tags(made.uri, "known")[TAG]
    calls = []

    class Watched:
        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            calls.append(name)
            return getattr(self._client, name)

    opened = ui_publish.reading_client
    monkeypatch.setattr(ui_publish, "reading_client", lambda uri: Watched(opened(uri)))
    publish_view(made.uri, "known")
    assert calls == []
    made.client.delete_run(next(one for one in read_records(made.uri, "known") if one.name.endswith("n-seed1")).run_id)
    publish_view(made.uri, "known")
    assert calls == ["log_batch"]
    assert math.isnan(shown(made)["alq-seed1"][1])
    assert experiment_tags(made.uri, "known")[TAG] == tag


def test_a_store_that_takes_nothing_shows_its_charts_and_why_no_more(made, monkeypatch):
    class ReadOnly:
        def __getattr__(self, name):
            raise PermissionError("attempt to write a readonly database")

    monkeypatch.setattr(ui_publish, "reading_client", lambda uri: ReadOnly())
    published = publish_view(made.uri, "known")
    assert "compareRunsMode=CHART" in published.path
    assert KEY not in published.path
    assert "readonly database" in published.missing


def test_nothing_recorded_and_nothing_there(tmp_path):
    store = Store(tmp_path)
    assert "no runs" in publish_view(store.uri, "known").missing
    with pytest.raises(UnknownExperimentError):
        publish_view(store.uri, "other")


def test_the_experiment_of_claims_that_an_earlier_version_made_is_listed_no_more(made):
    number = made.client.create_experiment(CLAIMS)
    publish_view(made.uri, "known")
    listed = made.client.search_experiments(filter_string="tags.`mlflow.experiment.isGateway` IS NULL")
    assert number not in [one.experiment_id for one in listed]
    assert made.number in [one.experiment_id for one in listed]
