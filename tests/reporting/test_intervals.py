"""95% intervals, beside scipy, and within the range of their metric."""

import math

import numpy as np
import pytest
from scipy import stats

from lqray.reporting.intervals import interval, kind_of, spread
from tests.testing.drawn_figures import at_steps, bands, drawn
from tests.testing.figure_stores import FigureStore
from tests.testing.reports import groups, report


def student(values):
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def of(values, kind):
    found = spread({str(index): value for index, value in enumerate(values)}, kind)
    return found.low, found.high


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("test/accuracy", "share"),
        ("test/error", "share"),
        ("test/loss", "nonnegative"),
        ("test/perplexity", "nonnegative"),
        ("wire/total_bytes_sent", "nonnegative"),
        ("time/seconds_per_step", "nonnegative"),
        ("quantizer/level/0", "any"),
        ("quantizer/snr", "any"),
    ],
)
def test_kinds_follow_from_the_name(metric, kind):
    assert kind_of(metric) == kind


def test_of_shares_it_is_students_t_on_the_logit_by_the_delta_method():
    values = [0.97, 0.99]
    assert student(values)[1] > 1.1  # what no accuracy can be
    mean, error = 0.98, stats.sem(values) / (0.98 * 0.02)
    odds = math.log(mean / (1 - mean)) + stats.t.ppf([0.025, 0.975], 1) * error
    assert of(values, "share") == pytest.approx(tuple(1 / (1 + np.exp(-odds))), rel=1e-12)
    assert 0 < of(values, "share")[0] < mean < of(values, "share")[1] < 1


def test_of_shares_that_hardly_differ_it_is_students_t():
    values = [0.501, 0.502, 0.5]
    assert of(values, "share") == pytest.approx(student(values), abs=1e-6)


def test_shares_at_the_ends():
    assert of([1.0, 1.0, 1.0], "share") == (1, 1)
    assert of([0.0, 0.0], "share") == (0, 0)
    low, high = of([1.0, 1.0, 0.999], "share")
    assert 0 < low < 0.9997 < high < 1
    low, high = of([0.0, 1.0], "share")
    assert 0 <= low < high <= 1


def test_what_the_name_promises_and_the_values_deny_has_students_t():
    for values, kind in (([97.0, 99.0], "share"), ([-1.0, 2.0], "nonnegative")):
        assert of(values, kind) == pytest.approx(student(values))


def test_of_what_cannot_be_negative_the_part_below_zero_is_cut():
    assert student([0.1, 0.4])[0] < -1
    assert of([0.1, 0.4], "nonnegative") == pytest.approx((0, student([0.1, 0.4])[1]))
    assert of([2.0, 2.1, 2.2], "nonnegative") == pytest.approx(student([2.0, 2.1, 2.2]))
    assert of([0.1, 0.4], "any") == pytest.approx(student([0.1, 0.4]))


def test_columns_are_on_their_own_and_gaps_stay_gaps():
    rows = np.asarray([[0.9, 1.0, 5.0, math.nan], [0.8, 1.0, 6.0, 0.5]])
    mean, low, high = interval(rows, "share")
    for column in range(3):
        assert (low[column], high[column]) == pytest.approx(of(rows[:, column], "share"))
    assert np.isnan([mean[3], low[3], high[3]]).all()
    assert np.isnan(interval(rows[:1], "share")[1]).all()


def test_tables_and_figures_have_the_same(tmp_path):
    store = FigureStore(tmp_path)
    store.experiment = "known"
    lasts = [0.97, 0.99, 0.98, 0.999, 0.9]
    for seed, last in enumerate(lasts):
        store.run("alq", seed, {"test/accuracy": at_steps((0.5, 0.6 + seed / 100, last))})
    final = groups(report(store.save()))["alq"].metrics["test/accuracy"].final
    assert (final.low, final.high) == pytest.approx(of(lasts, "share"))
    figure, _ = drawn(store, "curves")
    ((low, high, _),) = bands(figure.axes[0]).values()
    assert (low[-1], high[-1]) == pytest.approx((final.low, final.high))
