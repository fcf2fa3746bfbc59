"""Tables on terminals of any width: no number is cut, and what is left out is said."""

import csv
import io
import json
import re

import pytest
from click.testing import CliRunner
from rich.console import Console

from lqray.cli import main
from lqray.reporting.fitting import fitted
from lqray.reporting.report import show, written
from lqray.reporting.selection import UnknownKeyError
from lqray.reporting.tables import columns_of
from tests.testing.reports import report
from tests.testing.stores import Store

NUMBER = re.compile(r"\d+(?:\.\d+)*")


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    for seed in (1, 2, 3):
        for method, bits, sent in (
            ("full_precision", 32, 1.25e9),
            ("alq", 3, 123456789.0),
            ("post_local_sgd", 32, 8e7),
        ):
            made.run(
                method,
                seed,
                [0.5, 0.9 + seed / 1000 - bits / 5000],
                params={"optimizer.lr": 0.0125, "model.name": "resnet"},
                metrics={
                    "wire/bits_per_coordinate": bits + 0.125,
                    "wire/total_bytes_sent": sent,
                    "time/seconds_per_step": 0.0213,
                },
            )
    made.run("alq", 4, [0.5], "FAILED", params={"optimizer.lr": 0.0125, "model.name": "resnet"})
    return made


def on_a_terminal(made, width):
    stream = io.StringIO()
    show(Console(width=width, file=stream, force_terminal=True, color_system=None), made)
    return stream.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("columns", [(), ("method", "lr", "best", "mb_sent", "difference")])
def test_no_number_and_no_title_is_cut(store, width, columns):
    made = report(store, target=0.85, group_by=["method", "lr"], columns=columns)
    text = on_a_terminal(made, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    known = {number for line in on_a_terminal(made, 1000).splitlines() for number in NUMBER.findall(line)} | {
        str(width)
    }
    assert set(NUMBER.findall(text)) <= known
    found = fitted(made.columns or columns_of(made.comparison), made.comparison.groups, width)
    titles = " ".join(text.split())
    for column in found.columns if not found.stacked else ():
        for group in made.comparison.groups:
            assert column.wraps or column.cell(group) in titles
    if width >= 40:
        assert "full_precision" in text


def test_what_matters_least_is_left_out_first_and_said(store):
    made = report(store, target=0.85, group_by=["method", "lr", "model.name"])
    columns, groups = columns_of(made.comparison), made.comparison.groups
    shown = {width: fitted(columns, groups, width) for width in (40, 60, 80, 120, 300, None)}
    for width in (60, 80, 120):
        beside = shown[width].columns
        assert shown[width].left_out
        for another in shown[width].left_out:  # there is no room for any of them
            assert fitted([one for one in columns if one in (*beside, another)], groups, width).left_out
    assert not shown[300].left_out
    assert not shown[300].constant
    assert [title for title, _ in shown[80].constant] == ["lr", "model"]
    words = [one.word for one in shown[80].columns]
    assert words[:3] == ["method", "runs", "final"]
    assert "last" not in words
    assert "steps_to_target" in words
    text = on_a_terminal(made, 80)
    assert "Left out, for 80 characters:" in text
    assert "--columns" in text
    assert "lr 0.0125" in text


def test_without_room_for_columns_rows_are_stacked(store):
    made = report(store)
    assert fitted(columns_of(made.comparison), made.comparison.groups, 30).stacked
    text = on_a_terminal(made, 30)
    assert "method: full_precision" in text
    assert "seconds per step: 0.0213" in text
    assert "Left out" not in text


def test_what_is_no_terminal_has_room_for_all(store):
    text = CliRunner().invoke(main, ["report", "known", "--target", "0.85", "--uri", store.uri]).output
    assert "Left out" not in text
    assert all(title in text for title in ("last 5", "MB to 85.00%", "seconds per step"))


def test_columns_are_chosen_and_ordered_in_every_format(store):
    made = report(store, columns=["final", "method", "lr", "mb_sent"], metrics=["accuracy", "seconds_per_step"])
    head = written(made, "markdown").splitlines()[0]
    assert head == "| test accuracy | time seconds per step | method | lr | MB sent |"
    assert "\\toprule\ntest accuracy & time seconds per step & method & lr & MB sent" in written(made, "latex")
    rows = list(csv.DictReader(io.StringIO(written(made, "csv"))))
    assert next(iter(rows[0])) == "test/accuracy mean"
    assert list(rows[0])[-4:] == ["quantizer.method", "optimizer.lr", "bytes_sent", "run_ids"]
    assert {row["optimizer.lr"] for row in rows} == {"0.0125"}
    assert "test/accuracy low" not in rows[0]
    document = json.loads(written(made, "json"))
    assert document["columns"] == ["final", "final", "method", "lr", "mb_sent"]
    assert list(document["groups"][0]["metrics"]["test/accuracy"]) == ["final"]
    assert list(document["groups"][0]["costs"]) == ["bytes_sent"]
    assert "lr" in on_a_terminal(made, 120)
    one = report(store, columns=["accuracy.final"], metrics=["accuracy", "seconds_per_step"])
    assert written(one, "markdown").splitlines()[0] == "| test accuracy |"
    assert "| (varies) |" in written(report(store, columns=["seed"]), "markdown")


def test_a_column_that_has_nothing_to_say_may_be_asked_for(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, [0.5])
    rows = written(report(store, columns=["method", "interval", "difference"]), "markdown").splitlines()
    assert rows[0] == "| method | 95% interval | difference |"
    assert rows[2] == "| alq | - | - |"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("intervall", "did you mean 'interval'?"),
        ("optimizer.lrr", "did you mean 'optimizer.lr'?"),
        ("x", "allowed: method, runs, final, interval, best, last, difference, bits_per_coordinate, mb_sent"),
        ("name", "which may be data.name or model.name"),
    ],
)
def test_an_unknown_column_is_told_with_what_is_allowed(tmp_path, word, said):
    store = Store(tmp_path)
    for method in ("full_precision", "alq"):
        store.run(
            method,
            1,
            [0.5],
            params={"data.name": "digits", "model.name": "mlp", "optimizer.lr": 0.1},
            metrics={"wire/bits_per_coordinate": 1, "wire/total_bytes_sent": 2},
        )
    with pytest.raises(UnknownKeyError, match=re.escape(said)):
        report(store, columns=[word])


def test_columns_and_conditions_that_cannot_be_say_what_can(store):
    with pytest.raises(UnknownKeyError, match=r"'bytes_to_target_saved' without --target; allowed: both"):
        report(store, columns=["bytes_to_target_saved"])
    with pytest.raises(UnknownKeyError, match=r"full_precisio; did you mean 'full_precision'\?"):
        report(store, where=["method=full_precisio"])
    found = CliRunner().invoke(main, ["report", "known", "--columns", "method,,final", "--uri", store.uri])
    assert found.exit_code == 2
    assert "columns with a comma between them" in found.output
