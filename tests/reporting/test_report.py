"""`lqray report` on stores with known numbers, beside scipy."""

import csv
import io
import json
import math
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from scipy import stats

from lqray.cli import main
from lqray.experiment.grid import experiment_from_text
from lqray.experiment.plan import plan_tags
from lqray.reporting.planned import Recorded
from lqray.reporting.records import latest_attempts, read_records
from lqray.reporting.report import ReportOptions, make_report, written
from tests.testing.experiments import KNOWN
from tests.testing.reports import groups, report, share_interval
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


def test_means_intervals_and_the_paired_test_are_scipys(store):
    found = groups(report(store))
    assert list(found) == ["full_precision", "nuqsgd", "alq"]
    for method, values in (("full_precision", FULL), ("alq", ALQ)):
        final = found[method].metrics["test/accuracy"].final
        numbers = list(values.values())
        assert sorted(final.values.values()) == sorted(numbers)
        assert final.mean == pytest.approx(sum(numbers) / 3, rel=1e-12)
        assert final.std == pytest.approx(stats.tstd(numbers), rel=1e-12)
        assert (final.low, final.high) == pytest.approx(tuple(share_interval(numbers)), rel=1e-12)
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


def test_language_models_are_judged_by_a_loss_that_falls(tmp_path):
    """Best and target of a loss are those below; and it is the metric that is compared."""
    made, text = Store(tmp_path), {"task.name": "language_modelling", "data.name": "text"}
    costs = {"wire/bytes_sent": 10, "time/seconds_per_step": 1}
    for method, last in (("full_precision", 1.3), ("alq", 1.6)):
        made.run(method, 1, [3.0, 1.5, last], params=text, metrics=costs, headline="test/loss")
    found = report(made, target=1.5)
    assert found.comparison.metrics == ("test/loss",)
    full, alq = (groups(found)[name].metrics["test/loss"] for name in ("full_precision", "alq"))
    assert (full.best.mean, alq.best.mean) == (1.3, 1.5)
    assert full.to_target["steps"].mean == alq.to_target["steps"].mean == 200
    assert groups(report(made, target=1.4))["alq"].metrics["test/loss"].reached == 0


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
    assert any(line.startswith("alq & 3 & 3 of 5 (1 failed, 1 running)") for line in rows)
    assert not any("\\mathbf" in line for line in rows)  # no difference is significant
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


YAML = f"{KNOWN}sweep: [{{matrix: {{seed: [1, 2, 3]}}}}]\n"


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


def test_nothing_to_report_says_so(store):
    found = invoke("report", "known", "--uri", store.uri, "--only", "tpyo*")
    assert found.exit_code == 2
    assert "allowed: full_precision-seed1" in found.stderr
    assert not (store_folder := invoke("report", "x", "--uri", "sqlite:////nowhere/at/all.db")).stdout, store_folder
    assert "no MLflow store at" in store_folder.stderr


def test_a_store_that_is_away_is_told_without_its_password(monkeypatch):
    monkeypatch.setattr("lqray.store.client.READ_PATIENCE", 0.3)
    done = invoke("report", "x", "--uri", "http://ada:hidden@127.0.0.1:9")
    assert done.exit_code == 2
    assert "the MLflow store" in done.stderr
    assert "hidden" not in done.output
