"""`lqray compare` and `lqray export` on stores with known numbers."""

import csv
import json

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from lqray.cli import main
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


def test_brackets_in_an_error_are_shown(store):
    for seed, error in (
        (7, "[/pytorch/gloo/pair.cc:534] Connection closed"),
        (8, "[enforce fail at alloc_cpu.cpp:114]"),
    ):
        store.run("alq", seed, status="FAILED", tags={"lqray.error": error})
    shown = invoke("compare", "alq-seed7", "alq-seed8", "--uri", store.uri).stdout
    assert "[/pytorch/gloo/pair.cc:534]" in shown
    assert "[enforce fail" in shown
