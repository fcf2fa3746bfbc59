"""`lqray init`: the experiment that it writes is valid with each of its examples, and what it says next is true."""

import re
import shlex
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lqray.carried import carried
from lqray.cli import main
from lqray.cli.first_experiment import first_experiment, name_of
from lqray.experiment.grid import experiment_from_text
from lqray.reporting import ui
from tests.testing.hints import check, commands_in

TEXT = first_experiment("mine")


def is_example(line: str) -> bool:
    return line.startswith(("#  ",)) or bool(re.match(r"#[a-z]+:", line))


def examples() -> list[tuple[int, list[str]]]:
    """Blocks of examples: the number of their first line, and their lines without the #."""
    blocks = []
    for example, numbered in groupby(enumerate(TEXT.splitlines()), key=lambda one: is_example(one[1])):
        lines = list(numbered)
        if example:
            blocks.append((lines[0][0], [line[1:] for _, line in lines]))
    return blocks


def key(line: str) -> str:
    """A line's indentation and key, of what can be there once."""
    return line.partition(":")[0]


def with_example(at: int, lines: list[str]) -> str:
    """The file with one block uncommented; the lines that it stands instead of, which lie above it, are left out."""
    all_lines = TEXT.splitlines()
    keys = {key(line) for line in lines if not line.lstrip().startswith("-")}
    kept = [line for line in all_lines[:at] if line.startswith("#") or key(line) not in keys]
    return "\n".join([*kept, *lines, *all_lines[at + len(lines) :]]) + "\n"


def test_the_file_is_valid_and_short():
    experiment = experiment_from_text(TEXT, "mine.yaml")
    assert experiment.name == "mine"
    trials = list(experiment.trials())
    assert {one.trial.quantizer.method for one in trials} == {"full_precision", "qsgd_inf", "alq"}
    assert len(trials) == 6
    assert all(len(line) <= 120 for line in TEXT.splitlines())


@pytest.mark.parametrize(("at", "lines"), examples(), ids=lambda one: one[0].strip() if isinstance(one, list) else "")
def test_each_example_is_valid_in_its_place_and_changes_something(at, lines):
    text = with_example(at, lines)
    before, after = (experiment_from_text(one, "mine.yaml") for one in (TEXT, text))
    ids = [{named.trial.id for named in one.trials()} for one in (before, after)]
    of_the_machine = key(lines[0]) in ("resources", "storage", "tracking")
    stopping = "early_stopping" in lines[0]
    assert (ids[0] == ids[1]) is (of_the_machine or stopping)
    if of_the_machine:
        section = key(lines[0])
        assert getattr(before, section) != getattr(after, section)
    assert "instead" in TEXT.splitlines()[at - 1] or "besides" in TEXT.splitlines()[at - 1]


def test_the_examples_are_of_every_kind():
    shown = {key(line).strip(" -") for _, lines in examples() for line in lines}
    assert {"data", "model", "exchange", "include", "exclude", "matrix", "search", "storage", "tracking"} <= shown
    assert len(examples()) == 16
    assert "#  exchange: {every: 8}" in TEXT


def test_every_section_of_a_file_is_explained():
    for section in yaml.safe_load(TEXT).keys() - {"name"}:
        before = TEXT[: TEXT.index(f"\n{section}:")].splitlines()[-1]
        assert before.startswith("# ") or is_example(before), section


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("experiments", "first"), ("my-study", "my-study"), ("a/b_2", "b_2"), ("a b", "first"), ("2026", "first"),
        ("no", "first"), ("quickstart", "first"), ("lqray-leases", "first"), ("x" * 101, "first"), ("", "first"),
    ],
)  # fmt: skip
def test_names_that_yaml_and_lqray_take(directory, name):
    found = name_of(Path("/", directory), ["quickstart"])
    assert found == name
    assert yaml.safe_load(first_experiment(found))["name"] == name


@pytest.mark.processes
def test_what_it_prints_can_be_typed_word_by_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    opened = []
    monkeypatch.setattr(ui, "serve_ui", lambda uri, name, *_: opened.append((uri, name)) or 0)
    monkeypatch.setattr("lqray.cli.shared.program", lambda: "lqray")
    said = CliRunner().invoke(main, ["init"]).output
    commands = list(dict.fromkeys(commands_in(said)))
    assert [one.split()[1] for one in commands] == ["doctor", "expand", "run", "report", "ui", "run"]
    outputs = {}
    for command in commands[:-1]:
        check(command)
        program, *arguments = shlex.split(command)
        assert program == "lqray"
        # That it runs as it stands is of tests/test_documented_commands.py.
        quick = ["--launcher", "inline", "--limit", "2", "--set", "resources.processes=1"]
        quick = quick if arguments[0] == "run" else []
        done = CliRunner().invoke(main, [*arguments, *quick])
        assert done.exit_code == 0, done.output
        outputs[arguments[0]] = done.output
    assert "digits: 1,437 training examples" in outputs["doctor"]
    assert "first: 6 trials" in outputs["expand"]
    assert outputs["run"].count("finished in") == 2
    assert "full_precision" in outputs["report"]
    assert opened == [(f"sqlite:///{tmp_path}/lqray.db", "first")]
    assert Path(shlex.split(commands[-1])[-1]).read_bytes() == (carried("experiments") / "quickstart.yaml").read_bytes()


def test_what_is_there_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, files in ((["study", "--no-examples"], ["study.yaml"]), (["study"], None)):
        assert CliRunner().invoke(main, ["init", *options]).exit_code == 0
        found = sorted(one.name for one in (tmp_path / "study").iterdir())
        assert files is None or found == files
    assert "quickstart.yaml" in found
    (tmp_path / "study/study.yaml").write_text("mine")
    again = CliRunner().invoke(main, ["init", "study", "--overwrite"])
    assert "kept study/study.yaml, your experiment" in again.output
    assert (tmp_path / "study/study.yaml").read_text() == "mine"
