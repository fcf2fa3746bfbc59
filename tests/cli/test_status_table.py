"""The table of `lqray status`: by which metric trials are judged is theirs to say."""

import io
import json
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from lqray.cli import main
from lqray.cli.status_table import status_table
from tests.testing.stores import Store

HEARD = {"host": "here:1", "iteration": 5, "iterations": 9, "rate": None}


@pytest.mark.parametrize(
    ("params", "metrics", "said"),
    [
        ({}, {"test/accuracy": 0.9, "test/loss": 2.0, "train/loss": 1.5}, "accuracy 0.9  loss 1.5"),
        ({"task.headline": "null"}, {"test/loss": 2.0, "train/loss": 1.5}, "test loss 2  loss 1.5"),
        ({"task.headline": "test/loss"}, {"test/loss": 1.5, "train/loss": 2.0}, "test loss 1.5  loss 2"),
        ({"task.headline": "test/f1"}, {"test/accuracy": 0.9, "test/f1": 0.75, "train/loss": 1.5}, "f1 0.75  loss 1.5"),
        ({"task.headline": "test/f1"}, {"test/accuracy": 0.9, "train/loss": 1.5}, "accuracy 0.9  loss 1.5"),
    ],
)
def test_a_trial_that_runs_shows_its_headline(tmp_path, monkeypatch, params, metrics, said):
    monkeypatch.setenv("COLUMNS", "160")
    store = Store(tmp_path)
    tags = {"lqray.progress": json.dumps(HEARD | {"time": time.time()})}
    store.run("alq", 1, status="RUNNING", params=params, metrics=metrics, tags=tags)
    done = CliRunner().invoke(main, ["status", store.experiment, "--uri", store.uri, "--once"])
    assert done.exit_code == 0, done.output
    (row,) = [line for line in done.output.splitlines() if "alq-seed1" in line]
    assert row.split("5/9")[1].strip().removesuffix("here").strip() == said


def test_on_a_narrow_terminal_no_number_is_cut(tmp_path, monkeypatch):
    """Names and what a trial said wrap, numbers do not."""
    store = Store(tmp_path)
    tags = {"lqray.progress": json.dumps(HEARD | {"iteration": 123456, "iterations": 987654, "time": time.time()})}
    name = "allocated-bits3-lr0.0125-bucket_size16384-resnet-seed1"
    store.run("alq", 1, status="RUNNING", metrics={"test/accuracy": 0.8125, "train/loss": 1.875}, tags=tags, name=name)
    stream = io.StringIO()
    Console(width=80, file=stream).print(status_table(store.uri, [store.experiment]))
    text = stream.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(number in text for number in ("123456/987654", "0.8125", "1.875"))
    head, *rows = text.splitlines()
    first = [line[: head.index("state")].strip() for line in rows]
    assert name in "".join(first)
