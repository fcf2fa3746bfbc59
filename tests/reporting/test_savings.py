"""What methods save against a baseline, on stores with known numbers, beside scipy."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lqray.reporting.comparison import compare_groups
from lqray.reporting.pairs import Counterparts, chosen_baseline
from lqray.reporting.report import written
from lqray.reporting.savings import saving
from lqray.reporting.savings_table import savings_cell, times
from lqray.reporting.tables import columns_of, notes
from tests.testing.drawn_figures import at_steps
from tests.testing.figure_stores import FigureStore
from tests.testing.reports import groups, record, report

SENT = {"bf16": (1e6, 1e6, 1e6), "alq": (8e4, 1e5, 8e4), "full_precision": (2e6, 2e6, 2e6)}
SECONDS = {"bf16": (0.2, 0.3, 0.25), "alq": (0.1, 0.12, 0.125), "full_precision": (0.4, 0.5, 0.6)}
ACCURACY = {"bf16": (0.9, 0.91, 0.92), "alq": (0.9, 0.89, 0.7), "full_precision": (0.9, 0.92, 0.93)}


@pytest.fixture
def made(tmp_path):
    """Three methods of three seeds; the third of alq never reaches 0.8, the others do at the second evaluation."""
    store = FigureStore(tmp_path)
    store.experiment = "known"
    for method in SENT:
        for seed in (1, 2, 3):
            sent, seconds, last = (numbers[method][seed - 1] for numbers in (SENT, SECONDS, ACCURACY))
            middle = min(last, 0.85)
            metrics = {
                "test/accuracy": at_steps((0.5, middle, last)),
                "wire/total_bytes_sent": at_steps((sent / 3, 2 * sent / 3, sent)),
                "time/training_seconds": at_steps((100 * seconds, 200 * seconds, 300 * seconds)),
                "time/seconds_per_step": {300: seconds},
            }
            store.run(method, seed, metrics)
    return report(store.save(), target=0.8)


def ratio(method, own, baseline="bf16"):
    """(geometric mean, low, high, p) by scipy."""
    first, second = np.log(own[baseline]), np.log(own[method])
    ends = stats.t.interval(0.95, len(first) - 1, np.mean(first - second), stats.sem(first - second))
    return np.exp([np.mean(first - second), *ends]), stats.ttest_rel(first, second).pvalue


def test_ratios_are_geometric_means_with_intervals_and_tests_on_logarithms(made):
    assert (made.comparison.baseline, made.comparison.baseline_by_default) == ("bf16", True)
    alq, bf16 = groups(made)["alq"], groups(made)["bf16"]
    assert bf16.saved == {}
    for what, costs in (("bytes_sent", SENT), ("seconds_per_step", SECONDS)):
        found = alq.saved[what]
        expected, p = ratio("alq", costs)
        np.testing.assert_allclose([found.mean, found.low, found.high], expected)
        assert found.p_value == pytest.approx(p)
        assert sorted(found.values.values()) == pytest.approx(sorted(np.divide(costs["bf16"], costs["alq"])))
    assert alq.saved["bytes_sent"].mean == pytest.approx((12.5 * 10 * 12.5) ** (1 / 3))
    worse = groups(made)["full_precision"].saved["bytes_sent"]
    assert worse.mean == pytest.approx(0.5)
    assert (worse.low, worse.high) == pytest.approx((0.5, 0.5))  # all runs send the same
    assert math.isnan(worse.p_value)


def test_runs_that_did_not_reach_the_target_enter_no_ratio_and_are_counted(made):
    alq = groups(made)["alq"]
    found = alq.saved["bytes_to_target"]
    assert (len(found.pairs), found.of) == (2, 3)
    assert found.mean == pytest.approx(math.sqrt(12.5 * 10))
    seconds = alq.saved["seconds_to_target"]
    assert seconds.mean == pytest.approx(math.sqrt(2 * 2.5))
    assert savings_cell(alq, "bytes_to_target").endswith("(2 of 3)")
    assert savings_cell(groups(made)["bf16"], "bytes_to_target") == "-"


def test_the_baseline_may_be_what_did_not_reach_it():
    records = {name: record(name, 1) for name in ("bf16", "alq")}
    found = saving([(records["alq"], records["bf16"])], {records["alq"].run_id: 5.0})
    assert found is None
    assert saving([], {}) is None


def test_one_pair_has_a_ratio_only_and_what_costs_nothing_none():
    own, its = record("alq", 1), record("bf16", 1)
    found = saving([(own, its)], {own.run_id: 5.0, its.run_id: 60.0})
    assert found.mean == pytest.approx(12)
    assert all(math.isnan(one) for one in (found.low, found.high, found.p_value))
    assert saving([(own, its)], {own.run_id: 0.0, its.run_id: 60.0}) is None


def test_every_format_shows_them(made):
    titles = [column.title for column in columns_of(made.comparison)]
    assert titles[-4:] == ["bytes saved", "seconds per step saved", "bytes saved to 80.00%", "seconds saved to 80.00%"]
    text = written(made, "markdown")
    assert "Baseline: bf16 (the default among bf16, fp16 and full_precision)." in text
    assert "11.6× [" in text
    assert "0.500× |" in text  # an interval that says no more
    assert "Seconds are of the machine, and of what else it did while each method ran" in text
    rows = {row["quantizer.method"]: row for row in csv.DictReader(io.StringIO(written(made, "csv")))}
    alq = groups(made)["alq"].saved["bytes_sent"]
    own = rows["alq"]
    found = [own[f"bytes_sent saved{part}"] for part in ("", " low", " high", " p_value", " pairs")]
    assert found == [repr(alq.mean), repr(alq.low), repr(alq.high), repr(alq.p_value), "3"]
    assert own["bytes_to_target saved pairs"] == "2"
    assert (rows["bf16"]["bytes_sent saved"], rows["bf16"]["bytes_sent saved pairs"]) == ("", "0")
    document = json.loads(written(made, "json"))
    (saved,) = [one["saved"] for one in document["groups"] if one["keys"]["quantizer.method"] == "alq"]
    assert saved["bytes_to_target"]["of_pairs"] == 3
    assert saved["bytes_sent"]["ratio"] == alq.mean
    assert sorted(saved["bytes_sent"]["runs"].values()) == pytest.approx([10, 12.5, 12.5])


def test_the_interval_of_a_difference_is_shown_beside_its_p(made):
    gaps = np.subtract(ACCURACY["full_precision"], ACCURACY["bf16"])
    low, high = stats.t.interval(0.95, 2, np.mean(gaps), stats.sem(gaps))
    found = groups(made)["full_precision"].metrics["test/accuracy"].difference.spread
    assert (found.low, found.high) == pytest.approx((low, high))
    (column,) = [one for one in columns_of(made.comparison) if one.title == "- bf16"]
    assert column.cell(groups(made)["full_precision"]) == "+0.67% [-0.77, 2.10] (p 0.18)"


def test_a_baseline_of_ones_own_and_which_is_the_default():
    records = [record(method, 1) for method in ("sgd", "full_precision", "fp16", "bf16", "alq")]
    assert chosen_baseline(records) == "bf16"
    assert chosen_baseline([one for one in records if one.method != "bf16"]) == "fp16"
    unfinished = [replace(one, status="FAILED") if one.method in ("bf16", "fp16") else one for one in records]
    assert chosen_baseline(unfinished) == "full_precision"
    assert chosen_baseline(records[3:4]) is None
    assert chosen_baseline([record("sgd", 1), record("alq", 1)]) is None
    named = compare_groups(records, "", baseline="sgd", histories=False)
    assert (named.baseline, named.baseline_by_default) == ("sgd", False)
    assert "Baseline: sgd." in notes(named)


def test_pairs_are_of_equal_axes_but_for_those_of_an_exchange_that_the_baseline_does_not_vary():
    plain = [record("bf16", seed, optimizer__lr="0.1", exchange__every="null") for seed in (1, 2)]
    own = [record("alq", seed, optimizer__lr="0.1", exchange__every=every) for seed in (1, 2) for every in ("1", "8")]
    other = [record("alq", 1, optimizer__lr="0.2", exchange__every="8")]
    keys = ("quantizer.method", "exchange.every", "optimizer.lr")
    pairs = Counterparts([*plain, *own, *other], keys, "bf16").pairs([*own, *other, *plain])
    assert [(one.params["seed"], its.params["seed"]) for one, its in pairs] == [("1", "1")] * 2 + [("2", "2")] * 2
    varied = [record("bf16", 1, optimizer__lr="0.1", exchange__every="8")]
    pairs = Counterparts([*plain, *varied, *own], keys, "bf16").pairs(own)
    assert [(one.params["exchange.every"], its.params["exchange.every"]) for one, its in pairs] == [("8", "8")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.44, "12.4×"), (0.05, "0.0500×"), (999.6, "1000×"), (123456.7, "123457×"), (math.inf, "inf×")],
)
def test_times(value, text):
    assert times(value) == text


def test_notes_are_of_the_columns_that_are_shown(made):
    def said(*words):
        chosen = [one for one in columns_of(made.comparison) if one.word in words]
        assert len(chosen) == len(words)
        return [line.partition(":")[0] for line in replace(made, chosen=chosen).notes]

    assert said("method", "mb_sent") == []
    assert said("method", "bytes_saved") == ["Baseline", "Saved"]
    assert said("method", "final", "difference") == ["±", "Baseline", "- bf16"]
    assert "To 80.00%" in said("method", "steps_to_target")
