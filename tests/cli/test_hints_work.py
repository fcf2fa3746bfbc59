"""Commands that lqray prints in a state, typed in that state: they do what they are said to do."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lqray.cli import main, shared
from lqray.reporting import ui
from tests.testing.figure_stores import FigureStore
from tests.testing.hints import commands_in
from tests.testing.stores import Store


def typed(command: str) -> Result:
    """A command as it was printed, in this process."""
    program, *arguments = shlex.split(command)
    assert program == "lqray"
    return CliRunner().invoke(main, arguments)


def printed(text: str, name: str) -> str:
    """The one `lqray NAME` of what was printed, in however many lines."""
    (found,) = {command for command in commands_in(text) if command.startswith(f"lqray {name} ")}
    return found


def failed(folder, *options: str) -> str:
    """What `lqray run` says in this folder of a sweep of which a trial fails."""
    done = CliRunner().invoke(main, ["run", "small.yaml", "--launcher", "inline", *options])
    assert done.exit_code == 1, done.output
    return done.output


def check_hints_of_a_run(said: str, store: str, monkeypatch) -> None:
    """That it leads to its failures and, in the UI, to its experiment."""
    failures = typed(printed(said, "failures"))
    assert failures.exit_code == 0, failures.output
    assert "DivergedError" in failures.output
    opened = []
    monkeypatch.setattr(ui, "serve_ui", lambda uri, name, *_: opened.append((uri, name)) or 0)
    assert typed(printed(said, "ui")).exit_code == 0
    assert opened == [(store, "small")]


def test_a_run_in_the_default_store(swept, monkeypatch):
    folder, said = swept
    monkeypatch.chdir(folder)
    assert "lqray failures small\n" in said
    check_hints_of_a_run(said, f"sqlite:///{folder}/lqray.db", monkeypatch)


@pytest.mark.parametrize("how", ["file", "option"])
def test_a_run_whose_store_is_another_one(swept, tmp_path, monkeypatch, how):
    """Before, only the file's own was found, and only by the UI."""
    folder, _ = swept
    store = f"sqlite:///{tmp_path}/a b/other.db"
    (tmp_path / "a b").mkdir()
    shutil.copy(folder / "lqray.db", tmp_path / "a b/other.db")
    text = (folder / "small.yaml").read_text()
    (tmp_path / "small.yaml").write_text(text + (f"tracking: {{uri: '{store}'}}\n" if how == "file" else ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lqray.store.experiments._moved_from", lambda *_: None)
    said = failed(tmp_path, *([] if how == "file" else ["--set", f"tracking.uri={store}"]))
    assert f"lqray failures small --uri '{store}'" in said
    check_hints_of_a_run(said, store, monkeypatch)


def test_a_store_with_a_password_is_found_by_the_file_that_names_it(tmp_path, monkeypatch):
    store, file = "postgresql://ada:hidden@server/mlflow", tmp_path / "my sweep.yaml"
    assert shared.named("small", store, file) == f"'{file}'"
    assert shared.named("small", store) == "small --uri 'postgresql://ada:***@server/mlflow'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert shared.named("small", store, file) == "small"


def test_commands_begin_as_this_one_was_called(tmp_path, monkeypatch):
    """`make run` calls .venv/bin/lqray, which is on nobody's PATH."""
    program = tmp_path / "my venv/lqray"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert shared.program() == f"'{program}'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert shared.program() == "lqray"
    monkeypatch.setattr(sys, "argv", ["/lqray/__main__.py"])
    assert shared.program() == f"{shlex.quote(sys.executable)} -m lqray"


def test_what_stop_says_shows_the_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    store = Store(tmp_path)
    store.run("alq", 1, [0.5], status="RUNNING")
    said = CliRunner().invoke(main, ["stop", "known", "--uri", store.uri]).output
    shown = typed(printed(said, "status"))
    assert shown.exit_code == 0, shown.output
    assert "known" in shown.output


def test_what_plot_says_where_nothing_has_finished(tmp_path):
    store = FigureStore(tmp_path, "first one", "second")
    store.run("alq", 1, {"test/accuracy": {100: 0.5}}, status="FAILED", experiment="first one")
    store.run("alq", 1, {"test/accuracy": {100: 0.5}}, status="RUNNING", experiment="second")
    store.save()
    asked = ["plot", "first one", "second", "--kind", "curves", "--uri", store.uri, "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(main, asked).output
    found = [one for one in commands_in(said) if one.startswith("lqray failures")]
    assert len(found) == 2
    for command in found:
        assert typed(command).exit_code == 0, command
    assert "--running draws those that run" in said
    assert CliRunner().invoke(main, [*asked, "--running"]).exit_code == 0


@pytest.mark.parametrize("of", ["store", "folder"])
def test_what_compare_says_of_an_unknown_run(tmp_path, monkeypatch, of):
    store = Store(tmp_path)
    for seed in (1, 2):
        store.run("alq", seed, [0.5, 0.75], tags={"lqray.trial_id": f"{seed:016x}"})
    where = ["--uri", store.uri]
    if of == "folder":
        monkeypatch.chdir(tmp_path)
        assert CliRunner().invoke(main, ["export", "known", "out", *where]).exit_code == 0
        where = ["--experiment", "./out"]
    said = CliRunner().invoke(main, ["compare", "alq-seed1", "alq-seed9", *where])
    assert said.exit_code == 2
    listed = typed(printed(said.output, "report").replace("EXPERIMENT", "known"))
    assert listed.exit_code == 0, listed.output
    assert [one["keys"]["trial"] for one in json.loads(listed.output)["groups"]] == ["alq-seed1", "alq-seed2"]


def test_what_train_says_of_an_unknown_trial(tmp_path, swept):
    file = tmp_path / "a b.yaml"
    shutil.copy(swept[0] / "small.yaml", file)
    said = CliRunner().invoke(main, ["train", str(file), "--trial", "lr3"])
    assert said.exit_code == 2
    listed = typed(printed(said.output, "expand"))
    assert "lr0.05" in listed.output


def test_what_is_said_where_there_is_no_store(tmp_path, swept, monkeypatch):
    shutil.copy(swept[0] / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["status", "small", "--once"]).output
    command = printed(said, "run").replace("FILE", "small.yaml")
    assert typed(f"{command} --launcher inline --only lr0.05 --limit 1").exit_code == 0
    assert CliRunner().invoke(main, ["status", "small", "--once"]).exit_code == 0


def test_the_readme_of_an_export(swept, tmp_path, monkeypatch):
    folder, _ = swept
    monkeypatch.chdir(folder)
    assert typed(f"lqray export small {shlex.quote(str(tmp_path / 'FOLDER'))}").exit_code == 0
    readme = (tmp_path / "FOLDER/README.md").read_text()
    monkeypatch.chdir(tmp_path)
    assert typed("lqray report ./FOLDER").exit_code == 0
    monkeypatch.chdir(tmp_path / "FOLDER")
    # Not the one that the runs came of, which says what was done elsewhere.
    found = [one for one in commands_in(readme) if one != "lqray run small.yaml --launcher inline"]
    again = "lqray report experiment.yaml --metric test/accuracy"
    assert found == ["lqray run experiment.yaml", again, "lqray report FOLDER"]
    assert typed(f"{found[0]} --launcher inline --only lr0.05").exit_code == 0
    assert typed(found[1]).exit_code == 0


def test_the_description_of_an_experiment(swept, monkeypatch):
    from mlflow import MlflowClient

    folder, _ = swept
    monkeypatch.chdir(folder)
    note = MlflowClient(f"sqlite:///{folder}/lqray.db").get_experiment_by_name("small").tags["mlflow.note.content"]
    found = [command for command in commands_in(note) if not command.startswith("lqray run")]
    assert found == ["lqray report small", "lqray plot small --kind curves"]
    for command in found:
        assert typed(command).exit_code == 0, command
