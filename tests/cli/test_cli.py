import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lqray.cli import main, shared, sweeps
from lqray.reporting.figures.style import write

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "experiments/quickstart.yaml"


@pytest.mark.parametrize("arguments", [["--help"], ["expand", str(QUICKSTART)]])
def test_help_and_expand_import_nothing_heavy(arguments):
    code = (
        "import sys; from lqray.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'scipy', 'sklearn', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_expand_json():
    result = CliRunner().invoke(main, ["expand", str(QUICKSTART), "--format", "json"])
    trials = json.loads(result.stdout)
    assert len(trials) == 8
    assert trials[0].keys() == {"id", "name", "config"}
    assert trials[-1]["name"] == "alq-seed2"
    assert trials[-1]["config"]["quantizer"]["method"] == "alq"


def test_expand_table():
    result = CliRunner().invoke(main, ["expand", str(QUICKSTART)])
    assert "alq-seed2" in result.stdout
    assert "8 trials" in result.stdout


def test_expand_tells_of_combinations_that_are_the_same_trial(tmp_path):
    path = tmp_path / "same.yaml"
    path.write_text(QUICKSTART.read_text().replace("seed: [1, 2]", "quantizer.bits: [2, 3]"))
    assert "1 combinations are the same trial" in CliRunner().invoke(main, ["expand", str(path)]).stdout


@pytest.mark.parametrize(
    ("base", "sweep", "said"),
    [
        (
            "quantizer: {components: 2}",
            "{matrix: {quantizer.method: [full_precision, amq], seed: [1, 2]}, exclude: [{quantizer.method: amq}]}",
            "quantizer.components: it belongs to",
        ),
        (
            "exchange: {outer: {lr: 0.5}}",
            "{matrix: {quantizer.method: [full_precision], exchange.every: [null, 4]}, exclude: [{exchange.every: 4}]}",
            "exchange.outer: here gradients are exchanged at every step",
        ),
        (
            "exchange: {outer: {lr: 0.5}}",
            "{matrix: {quantizer.method: [full_precision], exchange.every: [null, 4]}}",
            None,
        ),
    ],
)
def test_expand_names_options_that_none_of_its_trials_uses(tmp_path, base, sweep, said):
    path = tmp_path / "x.yaml"
    text = (
        "name: x\nbase:\n  data: {name: digits}\n  model: {name: linear}\n  optimizer: {name: sgd, lr: 0.1}\n"
        f"  schedule: {{iterations: 10, batch_size: 4}}\n  workers: 2\n  {base}\nsweep:\n  - {sweep}\n"
    )
    path.write_text(text)
    done = CliRunner().invoke(main, ["expand", str(path)])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith("No trial uses")]
    assert len(lines) == (said is not None), lines
    if said:
        assert lines[0].startswith(f"No trial uses {said}")


@pytest.mark.parametrize("command", ["expand", "run"])
def test_a_bad_file_is_exit_code_2_and_no_traceback(tmp_path, command):
    path = tmp_path / "bad.yaml"
    path.write_text(QUICKSTART.read_text().replace("alq]", "alqq]"))
    result = CliRunner().invoke(main, [command, str(path)])
    assert result.exit_code == 2
    assert "did you mean 'alq'" in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["lqray-leases", "LQRay-Leases"])
def test_no_experiment_is_called_as_the_one_that_holds_claims(tmp_path, name):
    path = tmp_path / "claims.yaml"
    path.write_text(QUICKSTART.read_text().replace("name: quickstart", f"name: {name}"))
    result = CliRunner().invoke(main, ["run", str(path)])
    assert result.exit_code == 2
    assert "where lqray keeps which launch runs which trial" in result.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_experiment_lists_the_known(tmp_path):
    result = CliRunner().invoke(main, ["report", "nothing", "--uri", f"sqlite:///{tmp_path}/empty.db"])
    assert result.exit_code == 2
    assert "no MLflow store at" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_project_stands_alone():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    outside = "../" + "shared"
    for name in listed:
        assert outside not in (ROOT / name).read_text(encoding="utf-8", errors="ignore"), name


def test_a_traceback_is_of_a_defect_of_lqrays_and_says_so(monkeypatch):
    def broken(*_):
        raise AssertionError("cannot be")

    monkeypatch.setattr(shared, "read", broken)
    result = CliRunner().invoke(main, ["expand", str(QUICKSTART)])
    assert result.exit_code == 1
    assert "AssertionError: cannot be" in result.stderr
    assert "This is a defect of lqray" in result.stderr


def test_a_file_that_cannot_be_written_is_named_in_a_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x.png"))

    monkeypatch.setattr(shared, "read", full)
    result = CliRunner().invoke(main, ["expand", str(QUICKSTART)])
    assert (result.exit_code, result.output) == (2, f"Error: {tmp_path}/x.png: No space left on device\n")


def test_a_figure_on_a_full_disk_says_what_it_takes_and_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device \(the figure takes [\d,]+ bytes\): '.*x.pdf'"):
        write(Figure(), tmp_path / "x", ["pdf"])
    assert not list(tmp_path.iterdir())


def test_a_folder_in_brackets_is_printed_with_them(capsys):
    plan = SimpleNamespace(
        trials=[], more=0, limit=None, due=[], said_of_others="", uri="sqlite:////x/[old]/:smile:/lqray.db"
    )
    sweeps._say_plan(shared.console(), "[/x]", plan)
    assert capsys.readouterr().out == "[/x]: no trials, recorded in sqlite:////x/[old]/:smile:/lqray.db\n"


@pytest.mark.parametrize(
    "command",
    [
        *("status", "status far", "stop far", "ui far", "logs far", "failures far", "report far"),
        *("compare far other", "export far folder", "plot far --kind curves"),
    ],
)
def test_a_command_in_a_folder_without_a_store_makes_none(tmp_path, monkeypatch, command):
    """As on a laptop whose runs are recorded elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2, done.output
    assert "lqray.db" in done.output
    assert list(tmp_path.iterdir()) == []
