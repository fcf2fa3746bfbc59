"""lqray from Python: sweeps, reports and comparisons as functions, with the command line's words and numbers."""

import contextlib
import csv
import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lqray
from lqray.cli import main
from lqray.orchestration import signals
from lqray.store.errors import StoreError
from tests.testing.small import TEXT, empty_store


def prepared(folder: Path) -> Path:
    (folder / "small.yaml").write_text(TEXT.replace("NAME", "small").replace("FOLDER", str(folder)))
    empty_store(folder / "lqray.db")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """(folder, what came of a sweep in it, what was printed)."""
    place, out = prepared(tmp_path_factory.mktemp("sweep")), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(place)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return place, lqray.run("small.yaml", {"optimizer.lr": np.float64(0.1), "seed": 3}, launcher="inline"), out


@pytest.fixture
def swept(sweep, monkeypatch):
    monkeypatch.chdir(sweep[0])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sweep[1]


def said(*arguments: str) -> str:
    """By a command, with both of its streams."""
    return CliRunner().invoke(main, arguments).output


def test_a_sweep_runs_and_says_how_it_goes(sweep, swept, capsys):
    assert len(swept.trials) == 2
    assert sorted(swept.finished) == sorted(swept.trials)
    assert (swept.failed, swept.left, swept.halted) == ({}, {}, None)
    shown = sweep[2].getvalue()
    assert "small: 2 to run, recorded in sqlite:" in shown
    assert f"(2/2) {swept.finished[-1]}: finished" in shown
    assert "\x1b" not in shown


def test_the_same_again_runs_nothing_and_leaves_signals_as_they_were(swept, capsys):
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    assert lqray.run("small.yaml", ["optimizer.lr=0.1", "seed=3"], launcher="inline").finished == ()
    assert "2 finished before" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_report_has_the_numbers_of_the_command(swept):
    command = ("report", "small", "--all", "--format", "csv", "--metric", "test/accuracy", "--target", "0.1")
    (*_, last) = rows = list(csv.DictReader(io.StringIO(said(*command))))
    frame = swept.report(everything=True, metrics="test/accuracy", target=0.1)
    assert list(frame.columns) == list(last)
    assert list(frame["quantizer.method"]) == ["full_precision", "alq"]
    for row, (_, found) in zip(rows, frame.iterrows(), strict=True):
        for name, text in row.items():
            value = found[name]
            assert text == "" if isinstance(value, float) and math.isnan(value) else str(value) == text
    assert any("standard deviation" in line for line in frame.attrs["notes"])
    chosen = lqray.report("small", where={"quantizer.method": "alq"}, everything=True, group_by="trial")
    assert list(chosen["finished"]) == [1]


def test_parameters_are_numbers_where_all_of_them_are(swept):
    frame = lqray.report("small", everything=True, group_by=["seed", "method"])
    assert list(frame["seed"]) == [3, 3]


def test_runs_are_compared(swept):
    found = lqray.compare(*swept.trials)
    assert found.loc[("configuration", "quantizer.method"), swept.trials[1]] == "alq"
    assert ("configuration", "seed") not in found.index
    assert lqray.compare(*swept.trials, everything=True).loc[("configuration", "seed"), swept.trials[0]] == "3"
    assert swept.trials[0] not in lqray.compare(swept.trials[0], swept.trials[0]).columns


def test_a_trial_that_fails_is_reported_and_no_exception(folder):
    swept = lqray.run("small.yaml", {"optimizer.lr": 1e30}, launcher="inline", only="*alq*")
    assert swept.finished == ()
    assert [text.partition(":")[0] for text in swept.failed.values()] == ["non_finite"]
    assert list(swept.report(everything=True)["failed"]) == [1]


@pytest.mark.parametrize(
    ("call", "kind", "command"),
    [
        (
            lambda: lqray.run("small.yaml", {"quantizer.bitts": 3}),
            "ExperimentError",
            "run small.yaml --set quantizer.bitts=3",
        ),
        (lambda: lqray.run("small.yaml", only="nothing"), "NothingChosenError", "run small.yaml --only nothing"),
        (lambda: lqray.run("small.yaml", stop_on="loss"), "StopRuleError", "run small.yaml --stop-on loss"),
        (lambda: lqray.report("nothing"), "UnknownExperimentError", "report nothing"),
        (lambda: lqray.compare("one", "other"), "UnknownRunError", "compare one other"),
    ],
    ids=["override", "only", "stop rule", "experiment", "run"],
)
def test_errors_have_the_words_of_the_command(folder, call, kind, command):
    with pytest.raises(Exception) as found:  # noqa: PT011
        call()
    assert f"Error: {found.value}" in said(*command.split())
    assert type(found.value).__name__ == kind


def test_a_store_that_cannot_be_used_is_one_kind_of_error_without_its_password(folder):
    (folder / "other.db").write_text("no database, though long enough to be one" * 99)
    with pytest.raises(StoreError):
        lqray.report("small", uri=f"sqlite:///{folder}/other.db")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: lqray.run("small.yaml", launcher="ray"),
            "launcher: found 'ray'; allowed: auto, isolated, warm, inline",
        ),
        (lambda: lqray.run("small.yaml", limit=0), "limit: found 0; allowed: None, or at least 1"),
        (lambda: lqray.run("small.yaml", {"seed": {1: object()}}), "override seed: found a dict; allowed: "),
        (lambda: lqray.report(), "experiments: found 'none'; allowed: one or more"),
        (lambda: lqray.report("small", last=0), "last: found 0"),
        (lambda: lqray.compare("one"), "runs: found 1; allowed: two or more"),
    ],
    ids=["launcher", "limit", "override", "none", "last", "one run"],
)
def test_values_that_the_command_line_would_refuse_are_value_errors(folder, call, said):
    with pytest.raises(ValueError, match="allowed") as found:
        call()
    assert said in str(found.value)


def test_overrides_are_the_values_that_they_are(folder):
    from lqray.api import _texts
    from lqray.experiment.grid import read_experiment

    values = {"schedule.decay_at": [5, 10], "optimizer.lr": 1e-05, "seed": np.int64(7), "data.name": "gaussian_mixture"}
    (first, *_) = read_experiment("small.yaml", _texts(values)).trials()
    config = first.trial.config()
    assert config["schedule"]["decay_at"] == [5, 10]
    assert (config["optimizer"]["lr"], config["seed"], config["data"]["name"]) == (1e-05, 7, "gaussian_mixture")


def interrupted(folder, number: int, code: str) -> subprocess.CompletedProcess[str]:
    """A script whose sweep gets a signal once its first trial runs."""
    call = "lqray.run('small.yaml', {'schedule.iterations': 2000000}, launcher='inline')"
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job of a shell ignores it
    script = f"import signal\nimport lqray\n{heard}\ntry:\n    {call}\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-u", "-X", "faulthandler", "-c", script],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = threading.Timer(300, process.send_signal, [signal.SIGABRT])  # says where it stands
    watch.start()
    assert process.stdout
    for line in process.stdout:
        if ": step" in line:
            os.kill(process.pid, number)
            break
    out, err = process.communicate()
    watch.cancel()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.processes
def test_ctrl_c_ends_the_sweep_records_it_and_is_a_keyboard_interrupt(folder):
    code = (
        "except KeyboardInterrupt as error:\n    print(error, list(lqray.report('small', everything=True)['killed']))\n"
    )
    done = interrupted(folder, signal.SIGINT, code)
    assert done.returncode == 0, done.stderr
    assert re.search(r"recorded as KILLED; run the same again to continue \(\d were not started\) \[1\]", done.stdout)


@pytest.mark.processes
def test_sigterm_ends_the_sweep_and_then_the_program_that_runs_it(folder):
    done = interrupted(folder, signal.SIGTERM, "finally:\n    print('recorded')\n")
    assert done.returncode == -signal.SIGTERM, done.stderr
