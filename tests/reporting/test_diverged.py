"""Reports on runs that ended in what is no number."""

import csv
import io
import json
import math
from pathlib import Path

from rich.console import Console

from lqray.reporting.export import ExportOptions, export
from lqray.reporting.planned import Recorded
from lqray.reporting.report import ReportOptions, make_report, show, written
from tests.testing.reports import report
from tests.testing.stores import Store


def test_a_metric_that_ended_as_nan_has_no_earlier_value_as_its_last(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, [0.5], metrics={"test/loss": 3.0}, tags={"lqray.nan_metrics": "test/loss"})
    (group,) = report(store, metrics=["test/loss"]).comparison.groups
    assert math.isnan(group.metrics["test/loss"].final.mean)


def diverging(folder: Path) -> Store:
    """Six finished runs of two methods and three rates, of which four diverged: two to NaN, two to infinity."""
    store = Store(folder)
    for method in ("full_precision", "alq"):
        for lr, loss in (("0.05", 0.5), ("1e30", None), ("1e19", math.inf)):
            store.run(
                method,
                1,
                [0.9 if lr == "0.05" else 0.1],
                params={"optimizer.lr": lr},
                metrics={"test/loss": 3.0 if loss is None else loss, "wire/bytes_sent": 10.0},
                tags={} if loss is not None else {"lqray.nan_metrics": "test/loss,train/loss"},
                name=f"{method}-{lr}",
            )
    return store


def test_what_diverged_is_counted_in_every_format(tmp_path):
    found = report(diverging(tmp_path), metrics=["test/loss"], group_by=["seed"])
    (group,) = found.comparison.groups
    for shape in ("markdown", "csv", "json", "latex"):
        assert "2 of 6 (4 not finite)" in written(found, shape), shape
    console = Console(width=200, record=True, file=io.StringIO())
    show(console, found)
    assert "2 of 6 (4 not finite)" in console.export_text()
    measured = group.metrics["test/loss"]
    assert (measured.final.mean, measured.final.count, measured.final.not_finite) == (0.5, 2, 4)
    assert (measured.last.mean, measured.last.count) == (0.5, 2)
    (row,) = csv.DictReader(io.StringIO(written(found, "csv")))
    assert (row["finished"], row["test/loss count"], row["test/loss not finite"]) == ("6", "2", "4")
    final = json.loads(written(found, "json"))["groups"][0]["metrics"]["test/loss"]["final"]
    assert (final["count"], final["not_finite"], list(final["runs"].values()).count(None)) == (2, 4, 4)


def test_groups_of_which_nothing_is_finite_say_nan_and_inf(tmp_path):
    found = report(diverging(tmp_path), metrics=["test/loss"], group_by=["lr"], baseline="full_precision")
    by_lr = {group.keys["optimizer.lr"]: group for group in found.comparison.groups}
    assert by_lr["1e30"].runs == by_lr["1e19"].runs == "0 of 2 (2 not finite)"
    assert by_lr["1e30"].metrics["test/loss"].difference is None
    table = {line.split("|")[1].strip(): line for line in written(found, "markdown").splitlines() if "|" in line}
    assert "| nan |" in table["1e30"]
    assert "| inf |" in table["1e19"]
    rows = {row["optimizer.lr"]: row for row in csv.DictReader(io.StringIO(written(found, "csv")))}
    assert [rows[lr]["test/loss mean"] for lr in ("0.05", "1e30", "1e19")] == ["0.5", "nan", "inf"]


def test_metrics_that_are_not_shown_are_named_where_runs_diverged(tmp_path):
    found = report(diverging(tmp_path))
    assert "4 finished runs ended with test/loss, train/loss not finite; --metric shows them." in found.remarks


def test_what_is_not_finite_neither_reaches_a_target_nor_is_best(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, [0.2, math.inf, 0.4])
    store.run("alq", 2, [math.nan, 0.6, 0.5])
    (group,) = report(store, target=0.6).comparison.groups
    measured = group.metrics["test/accuracy"]
    assert measured.reached == 1
    assert sorted(measured.best.values.values()) == [0.4, 0.6]


def test_an_export_of_what_diverged_is_json_and_reads_the_same(tmp_path):
    store = diverging(tmp_path)
    whole = report(store, metrics=["test/loss"], group_by=["lr"])
    asked = ReportOptions(metrics=["test/loss"], group_by=["lr"])
    export(Recorded("known", store.uri), tmp_path / "out", ExportOptions(asked, "csv"))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((tmp_path / "out" / "runs.json").read_text(), parse_constant=refuse)
    again = make_report([Recorded("known", str(tmp_path / "out"))], asked)
    assert written(again, "csv") == written(whole, "csv")
