"""`lqray report` on stores with known numbers, beside scipy."""

import csv
import io
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from scipy import stats

from lqray.cli import main
from lqray.experiment.grid import experiment_from_text
from lqray.experiment.plan import plan_tags
from lqray.reporting.comparison import compare_groups
from lqray.reporting.export import export
from lqray.reporting.planned import Recorded
from lqray.reporting.records import Run, latest_attempts, read_records
from lqray.reporting.report import ReportOptions, make_report, show, written
from lqray.reporting.selection import UnknownKeyError, grouping_keys, select
from tests.testing.stores import Store, many_runs

FULL = {1: 0.90, 2: 0.92, 3: 0.91}
ALQ = {1: 0.89, 2: 0.90, 3: 0.915}


@pytest.fixture
def store(tmp_path):
    """Two methods with three seeds, a failed, a running and a killed run, and a run of another tool."""
    made = Store(tmp_path)
    for seed, accuracy in FULL.items():
        made.run(
            "full_precision",
            seed,
            [0.5, accuracy + 0.01, accuracy],
            metrics={"wire/bits_per_coordinate": 32, "wire/bytes_sent": 4000, "time/seconds_per_step": 0.02},
        )
    for seed, accuracy in ALQ.items():
        made.run(
            "alq",
            seed,
            [0.4, 0.8, accuracy],
            params={"quantizer.bits": 3},
            metrics={"wire/bits_per_coordinate": 3, "wire/bytes_sent": 400, "time/seconds_per_step": 0.01},
        )
    made.run("alq", 4, [0.1], "FAILED", {"quantizer.bits": 3}, tags={"lqray.error": "boom"})
    made.run("alq", 5, [0.1], "RUNNING", {"quantizer.bits": 3})
    made.run("nuqsgd", 1, [0.1], "KILLED", {"quantizer.bits": 3}, tags={"lqray.early": "at 100"})
    made.client.create_run(made.number, run_name="of another tool")
    return made


def report(store, **options):
    return make_report([Recorded(store.experiment, store.uri)], ReportOptions(**options))


def groups(made):
    return {group.keys["quantizer.method"]: group for group in made.comparison.groups}


def test_means_intervals_and_the_paired_test_are_scipys(store):
    found = groups(report(store))
    assert list(found) == ["full_precision", "nuqsgd", "alq"]
    for method, values in (("full_precision", FULL), ("alq", ALQ)):
        final = found[method].metrics["test/accuracy"].final
        numbers = list(values.values())
        assert sorted(final.values.values()) == sorted(numbers)
        assert final.mean == pytest.approx(sum(numbers) / 3, rel=1e-12)
        assert final.std == pytest.approx(stats.tstd(numbers), rel=1e-12)
        low, high = stats.t.interval(0.95, 2, loc=final.mean, scale=stats.sem(numbers))
        assert (final.low, final.high) == pytest.approx((low, high), rel=1e-12)
    difference = found["alq"].metrics["test/accuracy"].difference
    assert difference.p_value == pytest.approx(stats.ttest_rel(list(ALQ.values()), list(FULL.values())).pvalue)
    assert difference.spread.mean == pytest.approx(sum(ALQ.values()) / 3 - sum(FULL.values()) / 3)
    assert len(difference.pairs) == 3
    assert found["full_precision"].metrics["test/accuracy"].difference is None


def test_best_last_costs_and_what_it_took_to_a_target(store):
    found = groups(report(store, target=0.85, last=2))
    full, alq = found["full_precision"].metrics["test/accuracy"], found["alq"].metrics["test/accuracy"]
    assert full.best.mean == pytest.approx(0.92)
    assert full.last.mean == pytest.approx((0.92 + 0.91) / 2)
    assert {name: one.mean for name, one in full.to_target.items()} == {"steps": 200, "seconds": 4, "bytes": 800_000}
    assert {name: one.mean for name, one in alq.to_target.items()} == {"steps": 300, "seconds": 3, "bytes": 120_000}
    assert found["alq"].costs["bytes_sent"].mean == 120_000
    assert found["alq"].costs["bits_per_coordinate"].mean == 3
    nobody = groups(report(store, target=0.99))["alq"].metrics["test/accuracy"]
    assert nobody.reached == 0
    assert math.isnan(nobody.to_target["bytes"].mean)


def test_recorded_sums_of_bytes_and_seconds_are_preferred(tmp_path):
    store = Store(tmp_path)
    metrics = {"wire/total_bytes_sent": 77.0, "time/training_seconds": 5.0, "wire/bytes_sent": 1.0}
    store.run("alq", 1, [0.5], metrics=metrics)
    (group,) = report(store, target=0.5).comparison.groups
    until = group.metrics["test/accuracy"].to_target
    assert (until["bytes"].mean, until["seconds"].mean) == (77, 5)
    assert group.costs["bytes_sent"].mean == 77


def test_failed_running_and_stopped_trials_are_counted_not_hidden(store):
    made = report(store)
    assert groups(made)["alq"].states == {"finished": 3, "failed": 1, "running": 1}
    assert made.remarks == ["1 failed, 6 finished, 1 running, 1 stopped early."]
    text = written(made, "markdown")
    assert "3 of 5 (1 failed, 1 running)" in text
    assert "0 of 1 (1 stopped early)" in text
    assert "another tool" not in text


def test_every_number_of_the_json_traces_to_runs(store):
    document = json.loads(written(report(store, target=0.85), "json"))
    alq = next(group for group in document["groups"] if group["keys"]["quantizer.method"] == "alq")
    final = alq["metrics"]["test/accuracy"]["final"]
    assert sorted(final["runs"]) == sorted(alq["run_ids"])
    recorded = [store.client.get_run(run_id).data.metrics["test/accuracy"] for run_id in final["runs"]]
    assert final["mean"] == pytest.approx(sum(recorded) / 3)
    assert {one["state"] for one in alq["trials"]} == {"finished", "failed", "running"}
    assert document["experiments"] == {"known": store.uri}


def test_csv_is_unrounded(store):
    rows = list(csv.DictReader(io.StringIO(written(report(store), "csv"))))
    alq = next(row for row in rows if row["quantizer.method"] == "alq")
    assert float(alq["test/accuracy mean"]) == sum(ALQ.values()) / 3
    assert (alq["finished"], alq["failed"], alq["running"]) == ("3", "1", "1")
    assert len(alq["run_ids"].split()) == 3


def test_latex(store, tmp_path):
    text = written(report(store, group_by=["method", "bits"]), "latex")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == "\\begin{tabular}{" + "l" + "r" * (body[2].count("&")) + "}"
    rows = [line for line in body if line.endswith("\\\\")]
    assert len({line.count("&") for line in rows}) == 1
    assert all(
        line.replace("\\%", "").replace("\\_", "").isascii() and "%" not in line.replace("\\%", "") for line in rows
    )
    assert any(line.startswith("ALQ & 3 & 3 of 5 (1 failed, 1 running)") for line in rows)
    assert sum("\\mathbf" in line for line in rows) == 1
    if not shutil.which("pdflatex"):
        return  # the checks above are all that can be made without it
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + text + "\\end{document}"
    (tmp_path / "table.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"], cwd=tmp_path, check=True)


def test_one_seed_unequal_seeds_and_nan(tmp_path):
    store = Store(tmp_path)
    store.run("full_precision", 1, [0.9])
    store.run("alq", 1, [0.8])
    store.run("alq", 2, [float("nan")])
    store.run("alq", 3)
    found = groups(report(store))
    full, alq = found["full_precision"].metrics["test/accuracy"], found["alq"].metrics["test/accuracy"]
    assert (full.final.mean, alq.final.mean) == (0.9, 0.8)
    assert math.isnan(full.final.std)
    assert alq.final.count == 1
    assert alq.difference.spread.mean == pytest.approx(-0.1)
    assert math.isnan(alq.difference.p_value)
    text = written(report(store), "markdown")
    assert "nan" not in text
    assert "| 90.00% |" in text


def test_no_finished_trial(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, status="FAILED")
    made = report(store)
    for shape in ("markdown", "csv", "json", "latex"):
        assert "alq" in written(made, shape).lower()
    assert made.remarks == ["1 failed."]
    empty = Store(tmp_path, "empty")
    assert report(empty).comparison.groups == ()
    for shape in ("markdown", "csv", "json", "latex"):
        written(report(empty), shape)


YAML = """
name: known
base:
  data: {name: digits}
  model: {name: linear}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 100, batch_size: 8}
  quantizer: {method: alq}
sweep:
  - matrix: {seed: [1, 2, 3]}
"""


def test_trials_without_a_run_are_missing_and_those_of_another_file_left_out(tmp_path):
    store = Store(tmp_path)
    named = next(experiment_from_text(YAML, "known.yaml").trials())
    tags = {"lqray.trial_id": named.trial.id}
    store.run("alq", 1, [0.5], params=named.trial.params(), tags=tags, name=named.name)
    store.run("alq", 9, [0.1], name="of an older file")
    for key, value in plan_tags("launch", YAML).items():
        store.client.set_experiment_tag(store.number, key, value)
    made = report(store)
    (group,) = made.comparison.groups
    assert group.states == {"finished": 1, "missing": 2}
    assert [one.name for one in group.records] == ["seed1", "seed2", "seed3"]
    assert made.remarks[0] == "1 finished, 2 missing."
    assert made.remarks[1].startswith("1 runs of known are not of its file")
    assert len(report(store, everything=True).records) == 2


def test_the_latest_attempt_counts(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, [0.1], name="one", tags={"lqray.trial_id": "t"})
    latest = store.run("alq", 1, [0.2], name="one", tags={"lqray.trial_id": "t"})
    assert [one.run_id for one in latest_attempts(read_records(store.uri, store.experiment))] == [latest]


def record(method, seed, **params):
    flat = {"quantizer.method": method, "seed": str(seed)} | {key.replace("__", "."): v for key, v in params.items()}
    return Run(f"{method}{seed}{params}", "t", "n", "FINISHED", flat, {}, None)


def test_groups_are_told_apart_by_what_varies_beyond_the_method():
    weighted = [
        record("alq", 1, quantizer__weighting="norm"),
        record("optimal", 1, quantizer__weighting="norm_squared"),
    ]
    assert grouping_keys(weighted) == ("quantizer.method",)
    widths = [
        record("alq", seed, quantizer__bits=str(bits), data__root=f"/{seed}") for seed in (1, 2) for bits in (2, 3)
    ]
    assert grouping_keys([*widths, record("sgd", 1)]) == ("quantizer.method", "quantizer.bits")


def test_selection():
    records = [record("alq", seed, quantizer__bits=str(bits)) for seed in (1, 2) for bits in (2, 3)]
    assert len(select(records, where=["bits=3"])) == 2
    assert len(select(records, where=["bits=3", "seed=1"])) == 1
    with pytest.raises(UnknownKeyError, match="did you mean 'quantizer.bits'"):
        select(records, where=["quantizer.bit=3"])
    with pytest.raises(UnknownKeyError, match="KEY=VALUE"):
        select(records, where=["bits"])


def test_a_baseline_is_found_beside_other_axes():
    """full_precision knows no bits: alq is compared with it at every width, seed by seed."""
    records = [
        Run(f"a{bits}{seed}", "t", "n", "FINISHED", record("alq", seed, quantizer__bits=bits).params, {"m": 1.0}, None)
        for bits in "23"
        for seed in (1, 2)
    ]
    records += [
        Run(f"f{seed}", "t", "n", "FINISHED", record("full_precision", seed).params, {"m": 0.5}, None)
        for seed in (1, 2)
    ]
    compared = compare_groups(records, "", ["m"], histories=False)
    pairs = {group.keys["quantizer.bits"]: group.metrics["m"].difference for group in compared.groups}
    assert pairs[None] is None
    assert pairs["2"].pairs == (("a21", "f1"), ("a22", "f2"))
    assert pairs["3"].spread.mean == 0.5


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_the_command_line(store):
    uri = ["--uri", store.uri]
    assert "3 of 5" in invoke("report", "known", *uri).output.replace("\n", " ")
    for wrong, expected in (
        (["report", "knwon", *uri], "there are: Default, known"),
        (["report", "known", *uri, "--metric", "acc"], "allowed: test/accuracy, time/seconds_per_step"),
        (["report", "known", *uri, "--baseline", "amq"], "allowed: full_precision, nuqsgd, alq"),
        (["report", "known", *uri, "--group-by", "bit"], "did you mean 'quantizer.bits'"),
        (["compare", "alq-seed1", "alq-seed7", *uri], "found no run 'alq-seed7'"),
    ):
        result = invoke(*wrong)
        assert result.exit_code == 2
        assert expected in result.stderr, result.stderr


def test_a_tracking_server_gives_the_same(store, tmp_path, mlflow_server):
    for options in ({}, {"target": 0.85}):
        direct = report(store, **options)
        served = make_report([Recorded(store.experiment, mlflow_server(store.uri))], ReportOptions(**options))
        assert written(served, "csv") == written(direct, "csv")


def test_ten_thousand_runs(tmp_path):
    made = report(many_runs(tmp_path, 10_000))
    assert [len(group.finished) for group in made.comparison.groups] == [2000] * 5
    alq = groups(made)["alq"].metrics["test/accuracy"]
    assert len(alq.difference.pairs) == 2000
    assert alq.last.mean == pytest.approx(0.5 + alq.final.mean - 0.75)


def test_a_trial_in_two_experiments_counts_once(tmp_path):
    stores = [Store(tmp_path, name) for name in ("one", "two")]
    for store in stores:
        for seed in (1, 2):
            store.run("alq", seed, [0.5 + seed / 10], tags={"lqray.trial_id": f"trial{seed}"})
    made = make_report([Recorded(store.experiment, store.uri) for store in stores], ReportOptions())
    (group,) = made.comparison.groups
    assert group.metrics["test/accuracy"].final.count == 2
    assert "2 trials are in several of these experiments" in made.remarks[0]


def test_pairs_are_of_equal_axes_whatever_groups_are_shown():
    records = []
    for seed in (1, 2):
        for lr, value in (("0.1", 0.9), ("0.01", 0.5)):
            params = record("alq", seed, optimizer__lr=lr).params
            records.append(Run(f"a{lr}{seed}", f"a{lr}{seed}", "n", "FINISHED", params, {"m": value}, None))
        params = record("full_precision", seed, optimizer__lr="0.1").params
        records.append(Run(f"f{seed}", f"f{seed}", "n", "FINISHED", params, {"m": 0.8 + seed / 100}, None))
    compared = compare_groups(records, "", ["m"], ["method"], histories=False)
    (alq,) = [group for group in compared.groups if group.keys["quantizer.method"] == "alq"]
    assert alq.metrics["m"].difference.pairs == (("a0.11", "f1"), ("a0.12", "f2"))


def test_differences_that_are_all_equal_have_no_p_value():
    records = [
        Run(f"{method}{seed}", f"{method}{seed}", "n", "FINISHED", record(method, seed).params, {"m": value}, None)
        for seed, base in ((1, 0.9), (2, 0.7), (3, 0.8))
        for method, value in (("full_precision", base), ("alq", base + 1 / 360))
    ]
    compared = compare_groups(records, "", ["m"], histories=False)
    difference = compared.groups[1].metrics["m"].difference
    assert difference.spread.mean == pytest.approx(1 / 360)
    assert math.isnan(difference.p_value)


def test_trials_of_one_name_are_told_apart():
    records = [
        Run(lr, f"{lr}-trial", "seed1", "FINISHED", record("alq", 1, optimizer__lr=lr).params, {"m": 1.0}, None)
        for lr in ("0.1", "0.2")
    ]
    compared = compare_groups(records, "", ["m"], ["trial"], histories=False)
    assert [group.keys["trial"] for group in compared.groups] == ["seed1 (0.1-tr)", "seed1 (0.2-tr)"]


def test_a_metric_that_ended_as_nan_has_no_earlier_value_as_its_last(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, [0.5], metrics={"test/loss": 3.0}, tags={"lqray.nan_metrics": "test/loss"})
    (group,) = report(store, metrics=["test/loss"]).comparison.groups
    assert math.isnan(group.metrics["test/loss"].final.mean)


def test_nothing_to_report_says_so(store):
    found = invoke("report", "known", "--uri", store.uri, "--only", "tpyo*")
    assert found.exit_code == 2
    assert "there are: full_precision-seed1" in found.stderr
    assert not (store_folder := invoke("report", "x", "--uri", "sqlite:////nowhere/at/all.db")).stdout, store_folder
    assert "no MLflow store at" in store_folder.stderr


def test_a_store_that_is_away_is_told_without_its_password(tmp_path):
    done = invoke("report", "x", "--uri", "http://ada:hidden@127.0.0.1:9")
    assert done.exit_code == 2
    assert "the MLflow store" in done.stderr
    assert "hidden" not in done.output


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
    export(Recorded("known", store.uri), whole, tmp_path / "out", "csv")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((tmp_path / "out" / "runs.json").read_text(), parse_constant=refuse)
    again = make_report(
        [Recorded("known", str(tmp_path / "out"))], ReportOptions(metrics=["test/loss"], group_by=["lr"])
    )
    assert written(again, "csv") == written(whole, "csv")
