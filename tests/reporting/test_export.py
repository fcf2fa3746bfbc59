"""`lqray compare` and `lqray export` on stores with known numbers."""

import csv
import json

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.reporting.claim import recorded_options
from lqray.reporting.exported_page import command_options
from lqray.reporting.planned import Recorded
from lqray.reporting.report import make_report, written
from tests.testing.stores import Store


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    made.run("alq", 1, [0.5, 0.75], params={"quantizer.bits": 3}, tags={"lqray.trial_id": "aaaabbbbccccdddd"})
    made.run("alq", 2, [0.5, 0.8], params={"quantizer.bits": 4}, tags={"lqray.git_commit": "decade"})
    made.run("qsgd", 1, [0.4, 0.6], status="FAILED", tags={"lqray.error": "boom"})
    return made


def test_compare_shows_what_differs(store):
    found = json.loads(
        invoke("compare", "alq-seed1", "alq-seed2", "qsgd-seed1", "--uri", store.uri, "--format", "json").stdout
    )
    assert found["configuration"] == {
        "quantizer.bits": ["3", "4", "-"],
        "quantizer.method": ["alq", "alq", "qsgd"],
        "seed": ["1", "2", "1"],
    }
    assert found["code"] == {"git commit": ["c0ffee", "decade", "c0ffee"]}
    assert found["result"]["test/accuracy"] == [0.75, 0.8, 0.6]
    assert found["run"]["state"] == ["finished", "finished", "failed"]
    shown = invoke("compare", "aaaabbbb", "alq-seed2", "--uri", store.uri, "--format", "markdown").stdout
    assert "| test/accuracy | 0.75 | 0.8 (+0.05, +6.7%) |" in shown
    assert "schedule.iterations" not in shown
    everything = invoke("compare", "aaaabbbb", "alq-seed2", "--uri", store.uri, "--format", "markdown", "--all").stdout
    assert "| schedule.iterations | 300 | 300 |" in everything
    assert "no difference" in invoke("compare", "alq-seed1", "alq-seed1", "--uri", store.uri).stdout


def test_compare_by_run_id_and_trials_of_several_experiments(store, tmp_path):
    other = Store(tmp_path, "other")
    run_id = other.run("alq", 1, [0.9])
    both = invoke("compare", "alq-seed1", run_id, "--uri", store.uri)
    assert both.exit_code == 2
    assert "found 2 trials called 'alq-seed1'" in both.stderr
    chosen = invoke("compare", "alq-seed1", "alq-seed2", "--uri", store.uri, "--experiment", "known")
    assert chosen.exit_code == 0
    assert invoke("compare", run_id, "aaaabbbb", "--uri", store.uri).exit_code == 0
    assert invoke("compare", run_id, "--uri", store.uri).exit_code == 2


@pytest.mark.parametrize("raw", ["parquet", "csv"])
def test_export_is_whole_and_explains_itself(store, tmp_path, raw):
    out = tmp_path / "out"
    done = invoke("export", "known", out, "--raw", raw, "--uri", store.uri)
    assert done.exit_code == 0, done.output
    names = {file.name for file in out.iterdir()}
    assert {"README.md", "report.md", "report.csv", "report.json", "report.tex", "runs.csv", f"metrics.{raw}"} <= names
    readme = (out / "README.md").read_text()
    assert "c0ffee" in readme
    assert "1 failed, 2 finished." in readme
    runs = list(csv.DictReader((out / "runs.csv").open()))
    assert [(one["name"], one["state"], one["test/accuracy"]) for one in runs] == [
        ("alq-seed1", "finished", "0.75"),
        ("alq-seed2", "finished", "0.8"),
        ("qsgd-seed1", "failed", "0.6"),
    ]
    if raw == "parquet":
        points = pyarrow.parquet.read_table(out / "metrics.parquet").to_pylist()
    else:
        points = list(csv.DictReader((out / "metrics.csv").open()))
    accuracy = {
        (one["trial"], int(one["step"])): float(one["value"]) for one in points if one["metric"] == "test/accuracy"
    }
    assert accuracy == {
        **{("alq-seed1", 100): 0.5, ("alq-seed1", 200): 0.75},
        **{("alq-seed2", 100): 0.5, ("alq-seed2", 200): 0.8},
        **{("qsgd-seed1", 100): 0.4, ("qsgd-seed1", 200): 0.6},
    }
    # The folder stands in for the store.
    for command in (["report", "--format", "csv", "--target", "0.7"], ["report", "--group-by", "trial"]):
        from_store = invoke(*command, "known", "--uri", store.uri)
        assert from_store.exit_code == 0
        from_folder = invoke(*command, out)
        assert from_folder.output == from_store.output, from_folder.exception
    both = ["alq-seed1", "alq-seed2", "--format", "json"]
    assert invoke("compare", *both, "--experiment", out).output == invoke("compare", *both, "--uri", store.uri).output
    again = invoke("export", "known", out, "--uri", store.uri)
    assert again.exit_code == 2
    assert "allowed: a folder that is empty or does not exist yet" in again.stderr


@pytest.mark.parametrize("raw", ["parquet", "none"])
def test_the_record_makes_its_tables_again(tmp_path, raw):
    store = Store(tmp_path)
    for seed, accuracy in enumerate((0.7, 0.72, 0.75), 1):
        shared = {"optimizer.lr": 0.1}
        tags = {"lqray.command": "lqray run a.yaml", "lqray.host": "one", "lqray.holder": "secret"}
        tags |= {"lqray.machine": "AMD EPYC, 2 cores"} if seed == 1 else {}
        more = {"train/loss": 1.5, "wire/bits_per_coordinate": 2.0}
        store.run("full_precision", seed, [0.5, accuracy], params=shared, tags=tags, metrics=more)
        store.run("alq", seed, [0.4, accuracy - 0.01 * seed**2], params=shared, tags=tags, metrics=more)
    out, said = tmp_path / "out", "Fewer bits do no harm."
    asked = ["--raw", raw, "--keep", "test/*", "--hypothesis", said, "--target", "0.6", "--figures", "none"]
    done = invoke("export", "known", out, *asked, "--baseline", "full_precision", "--uri", store.uri)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "record.json").read_text())
    assert (record["hypothesis"], record["seeds"], record["commands"]) == (said, ["1", "2", "3"], ["lqray run a.yaml"])
    assert record["machines"] == [
        {"host": "one", "runs": 4},
        {"host": "one", "machine": "AMD EPYC, 2 cores", "runs": 2},
    ]
    assert record["code"] == [{"commit": "c0ffee", "runs": 6}]
    assert record["report"]["baseline"] == "full_precision"
    assert record["date"] == record["first_run_began"][:10]
    (alq,) = (row for row in record["result"] if row["quantizer.method"] == "alq")
    assert alq["test/accuracy difference"] == pytest.approx(-0.14 / 3)
    assert 0 < alq["test/accuracy p_value"] < 1
    assert said in (out / "README.md").read_text()
    options = recorded_options((out / "record.json").read_text())
    again = make_report([Recorded("known", str(out))], options)
    for name, shape in (("report.md", "markdown"), ("report.csv", "csv"), ("report.tex", "latex")):
        assert (out / name).read_text() == written(again, shape)
    histories = {spread.best.count for group in again.comparison.groups for spread in group.metrics.values()}
    assert histories == {3 if raw == "parquet" else 0}
    kept = json.loads((out / "runs.json").read_text())
    assert kept["shared"]["params"]["optimizer.lr"] == "0.1"
    assert all("optimizer.lr" not in run["params"] and "train/loss" not in run["metrics"] for run in kept["runs"])
    assert "secret" not in (out / "runs.json").read_text()
    assert "optimizer.lr" not in (out / "runs.csv").read_text().splitlines()[0]
    assert not (out / "figures").exists()
    # An export is a store, also for another export.
    once_more = invoke("export", out, tmp_path / "again", *asked, "--baseline", "full_precision")
    assert once_more.exit_code == 0, once_more.output
    for name in ("record.json", "report.md", "report.csv", "runs.json", "runs.csv", "README.md"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text(), name


@pytest.mark.parametrize(
    ("keep", "kept"), [((), True), (("levels",), True), (("quantizer/level/*",), True), (("test/*",), False)]
)
def test_levels_go_along_and_are_drawn_from_the_folder(tmp_path, keep, kept):
    store = Store(tmp_path)
    client = MlflowClient(store.uri)
    whole = {"every": 1, "series": {"quantizer/level": {"steps": [1, 9], "rows": [0, 0], "values": [[-1.0, 1.0]]}}}
    texts = {store.run("alq", 1, [0.5]): json.dumps(whole), store.run("alq", 2, [0.5]): "[]"}
    for run_id, text in texts.items():
        client.log_text(run_id, text, "levels.json")
    out = tmp_path / "out"
    patterns = [part for pattern in keep for part in ("--keep", pattern)]
    done = invoke("export", "known", out, *patterns, "--figures", "none", "--uri", store.uri)
    assert done.exit_code == 0, done.output
    sound, damaged = texts
    assert (f"levels.json of run {damaged}" in (out / "README.md").read_text()) is kept
    files = [str(file.relative_to(out)) for file in out.rglob("levels.json")]
    assert files == ([f"artifacts/{sound}/levels.json"] if kept else [])
    if kept:
        assert json.loads((out / files[0]).read_text()) == whole
        drawn = invoke("plot", out, "--kind", "levels", "--out", tmp_path / "figures")
        assert drawn.exit_code == 0, drawn.output


def test_only_the_figures_that_are_wanted(store, tmp_path):
    done = invoke("export", "known", tmp_path / "out", "--figures", "curves", "--format", "png", "--uri", store.uri)
    assert done.exit_code == 0, done.output
    assert [one.name for one in (tmp_path / "out/figures").iterdir()] == ["known-curves.png"]
    wrong = invoke("export", "known", tmp_path / "other", "--figures", "curvs", "--uri", store.uri)
    assert "did you mean 'curves'?" in wrong.stderr


def test_a_tuned_export_keeps_what_was_not_chosen(tmp_path):
    store = Store(tmp_path)
    for rate, accuracy in ((0.1, 0.7), (0.2, 0.8)):
        store.run("alq", 1, [accuracy], params={"optimizer.lr": rate}, name=f"alq-lr{rate}")
    done = invoke("export", "known", tmp_path / "out", "--tuned", "lr", "--figures", "none", "--uri", store.uri)
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "out/runs.json").read_text())["runs"]) == 2
    (row,) = json.loads((tmp_path / "out/record.json").read_text())["result"]
    assert (row["optimizer.lr"], row["tried"]) == ("0.2", "2")


def test_a_target_that_cannot_be_is_said(store, tmp_path):
    found = invoke("export", "known", tmp_path / "out", "--uri", store.uri, "--target", "90")
    assert found.exit_code == 2
    assert "did you mean 0.9?" in found.output
    assert not (tmp_path / "out").exists()


def test_the_page_says_how_to_have_the_same_table():
    asked = {"metrics": ["test/loss", "train/loss"], "group_by": [], "baseline": "bf16", "target": 2.4, "last": 5}
    asked |= {"tuned": ["optimizer.lr"], "tuning_seeds": ["1", "2"]}
    said = (
        " --metric test/loss --metric train/loss --baseline bf16 --target 2.4 --tuned optimizer.lr --tuning-seeds 1,2"
    )
    assert command_options(asked) == said
    assert command_options({"metrics": [], "baseline": None, "target": None, "tuned": None}) == ""


def test_brackets_in_an_error_are_shown(store):
    for seed, error in (
        (7, "[/pytorch/gloo/pair.cc:534] Connection closed"),
        (8, "[enforce fail at alloc_cpu.cpp:114]"),
    ):
        store.run("alq", seed, status="FAILED", tags={"lqray.error": error})
    shown = invoke("compare", "alq-seed7", "alq-seed8", "--uri", store.uri).stdout
    assert "[/pytorch/gloo/pair.cc:534]" in shown
    assert "[enforce fail" in shown
