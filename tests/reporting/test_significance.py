"""What is set bold: what none is significantly better than."""

import numpy as np
from scipy import stats

from lqray.reporting.comparison import compare_groups
from lqray.reporting.records import Run
from lqray.reporting.report import Report, written
from lqray.reporting.significance import leading
from tests.testing.reports import record


def sample(values, first=1):
    return list(enumerate(values, first))


def test_the_best_alone_leads_where_it_is_significantly_better():
    good, bad = sample([0.90, 0.91, 0.92]), sample([0.80, 0.812, 0.821])
    assert leading([bad, good], higher=True) == {1}
    assert leading([bad, good], higher=False) == {0}


def test_nothing_leads_where_that_would_be_all():
    assert leading([sample([0.9, 0.92, 0.91]), sample([0.89, 0.93, 0.905])], higher=True) == frozenset()
    assert leading([], higher=True) == leading([sample([1.0, 2.0])], higher=True) == frozenset()


def test_several_lead_where_only_others_are_worse():
    samples = [sample([0.9, 0.92, 0.91]), sample([0.89, 0.93, 0.905]), sample([0.5, 0.53, 0.51])]
    assert leading(samples, higher=True) == {0, 1}


def test_seeds_pair_where_each_has_its_counterpart_else_the_test_is_welchs():
    """Seeds vary by more than the methods differ: only in pairs is the difference seen."""
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, 6)
    one, other = seeds + rng.normal(0.1, 0.01, 6), seeds + rng.normal(0, 0.01, 6)
    assert stats.ttest_rel(one, other).pvalue < 0.001 < 0.5 < stats.ttest_ind(one, other, equal_var=False).pvalue
    assert leading([sample(one), sample(other)], higher=True) == {0}
    assert leading([sample(one), sample(other, first=10)], higher=True) == frozenset()
    twice = [(seed % 3, value) for seed, value in sample(other)]
    assert leading([sample(one), twice], higher=True) == frozenset()


def test_many_rows_are_corrected_for():
    """A p-value between 5% and 5% over the number of rows is none that counts among many."""
    best, near = sample([1.0, 1.1, 1.2, 1.05], 1), sample([0.9, 0.95, 1.0, 0.8], 11)
    p = stats.ttest_ind([1.0, 1.1, 1.2, 1.05], [0.9, 0.95, 1.0, 0.8], equal_var=False).pvalue
    assert 0.05 / 4 < p < 0.05
    assert leading([best, near], higher=True) == {0}
    rest = [sample([1.0, 1.2, 1.01, 1.07], 100 * k) for k in (1, 2, 3)]
    assert leading([best, near, *rest], higher=True) == frozenset()
    worse = [sample([0.1, 0.11, 0.12, 0.1], 100 * k) for k in (1, 2, 3)]
    assert leading([best, near, *worse], higher=True) == {0}  # after those that are rejected first, it is one of one


def test_values_that_do_not_vary_are_not_tested():
    assert leading([sample([0.9, 0.9]), sample([0.8, 0.8])], higher=True) == frozenset()


def test_a_gap_that_does_not_vary_is_tested_without_pairs():
    best, worse, worst = (
        sample([at, at + step, at + 2 * step]) for at, step in ((1.0, 0.01), (1.5, 0.01), (2.0, 0.05))
    )
    assert leading([best, worse, worst], higher=False) == {0}
    tiny = [sample([1e-13, 1.1e-13, 1.2e-13]), sample([9e-13, 9.4e-13, 9.1e-13]), sample([1.1e-13, 1e-13, 1.2e-13])]
    assert leading(tiny, higher=False) == {0, 2}


def made(values):
    """A report of runs without histories, by method."""
    records = [
        Run(f"{method}{seed}", f"{method}{seed}", "n", "FINISHED", record(method, seed).params, {"m": value}, None)
        for method, each in values.items()
        for seed, value in enumerate(each)
    ]
    return compare_groups(records, "", ["m"], histories=False)


def bold(comparison):
    text = written(Report(comparison, []), "latex")
    return [line.split(" & ")[0] for line in text.splitlines() if "mathbf" in line], text


def test_latex_sets_bold_what_leads_and_says_what_that_means():
    rows, text = bold(made({"bf16": (3.0, 3.1, 3.2), "alq": (1.0, 1.1, 1.21), "qsgd": (1.02, 1.1, 1.19)}))
    assert rows == ["qsgd", "alq"]
    assert "% Bold: no row is significantly better" in text
    assert "never bold" not in text


def test_of_single_seeds_nothing_is_bold_and_a_note_says_why():
    rows, text = bold(made({"bf16": (3.0,), "alq": (1.0,)}))
    assert rows == []
    assert "% Rows of one finished run are never bold" in text
    rows, _ = bold(made({"bf16": (3.0, 3.1, 3.2), "alq": (1.0, 1.1, 1.21), "qsgd": (0.1,)}))
    assert rows == ["alq"]
