"""Reports on the stores of `tests.testing.stores`, and records without a store."""

import numpy as np
from scipy import special, stats

from lqray.reporting.planned import Recorded
from lqray.reporting.records import Run
from lqray.reporting.report import ReportOptions, make_report


def report(store, **options):
    """The report on a store's experiment."""
    return make_report([Recorded(store.experiment, store.uri)], ReportOptions(**options))


def groups(made):
    """A report's groups, by method."""
    return {group.keys["quantizer.method"]: group for group in made.comparison.groups}


def share_interval(rows):
    """95% interval of the mean of shares (runs,) or (runs, n), none of them all equal, by scipy: on the logit."""
    mean = np.mean(rows, axis=0)
    odds = stats.t.interval(0.95, len(rows) - 1, special.logit(mean), stats.sem(rows) / (mean * (1 - mean)))
    return special.expit(odds)


def record(method, seed, **params):
    """A finished run; params: options, with __ where a key has a dot."""
    flat = {"quantizer.method": method, "seed": str(seed)} | {key.replace("__", "."): v for key, v in params.items()}
    return Run(f"{method}{seed}{params}", "t", "n", "FINISHED", flat, {}, None)
