"""Rules that stop a trial: how they are written, and that a worker follows them."""

import math

import pytest

from lqray.orchestration.queue.stop_rules import StopRuleError, parse_stop_rule
from lqray.orchestration.worker.reporter import Reporter
from lqray.training.reports import Report
from tests.testing.reporters import Link, task


def test_stop_rules(tmp_path):
    link = Link()
    reporter = Reporter(task(tmp_path, "accuracy<0.5@20", "NaN"), link, lambda line: None)
    reporter.report(Report(10, 100, {"test/accuracy": 0.1}, evaluated=True))
    assert not reporter.stop()
    reporter.report(Report(20, 100, {"test/accuracy": 0.4}, evaluated=True))
    assert reporter.stop()
    assert reporter.broken_rule == "test/accuracy<0.5@20"
    assert parse_stop_rule("nan").broken(1, {"train/loss": math.nan})
    assert parse_stop_rule("loss > 1e3").broken(1, {"train/loss": 2e3})
    assert parse_stop_rule("perplexity>100").broken(1, {"test/perplexity": 200.0})
    assert not parse_stop_rule("loss>4@1000").broken(999, {"train/loss": 5.0})
    assert parse_stop_rule("loss>4@1000").broken(1000, {"train/loss": 5.0})
    for bad in ("accuracy", "accuracy<x", "accuracy<=1", ""):
        with pytest.raises(StopRuleError, match="allowed: NaN"):
            parse_stop_rule(bad)
