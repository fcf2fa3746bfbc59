"""The first use of a sqlite store: whole or not there, whoever else comes, and whatever was left before."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.store import sqlite_file
from lqray.store.client import client_of, prepare, reading_client
from lqray.store.errors import NoStoreError, StoreError
from tests.testing.stores import _tables

OPEN = "import sys; from lqray.store.client import client_of; print(len(client_of(sys.argv[1]).search_experiments()))"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """To make the tables takes its time in each of these tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def uri(path: Path) -> str:
    return f"sqlite:///{path}"


def opening(path: Path) -> subprocess.Popen[str]:
    """It hears Ctrl-C also where the tests themselves are a shell's background job, which does not."""
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, uri(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def whole(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        return {"runs", "alembic_version"} <= tables and not any("_alembic_tmp" in one for one in tables)


@pytest.mark.processes
def test_four_processes_that_open_a_new_store_at_once_all_have_it(tmp_path):
    path = tmp_path / "runs.db"
    started = [opening(path) for _ in range(4)]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 4, ended
    assert [out.strip() for out, _ in ended] == ["1"] * 4
    assert [said for _, said in ended] == [""] * 4
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_while_it_makes_a_store_leaves_none(tmp_path, how):
    path = tmp_path / "runs.db"
    process = opening(path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs.db.new").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert (tmp_path / "runs.db.new").exists()
    process.send_signal(how)
    process.communicate(timeout=60)
    assert not path.exists()
    assert len(client_of(uri(path)).search_experiments()) == 1
    assert list(tmp_path.iterdir()) == [path]


def half_made(path: Path) -> None:
    """As two at once left it: a table that a migration was about to rename, no revision."""
    path.write_bytes(_tables())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE _alembic_tmp_latest_metrics (key TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.commit()
    os.utime(path, (1, 1))


def test_a_half_made_store_without_runs_is_moved_aside_and_made_anew(tmp_path, capsys):
    path = tmp_path / "runs.db"
    half_made(path)
    with pytest.raises(StoreError, match="half-made by a process that ended. It holds no runs: `lqray run FILE`"):
        reading_client(uri(path))
    assert len(client_of(uri(path)).search_experiments()) == 1
    assert whole(path)
    (aside,) = (one for one in tmp_path.iterdir() if one != path)
    assert aside.name.startswith("runs.db.half-made-")
    assert aside.name in capsys.readouterr().err


def test_a_half_made_store_with_runs_is_left_and_the_remedy_said(tmp_path):
    path = tmp_path / "runs.db"
    half_made(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO runs (run_uuid, experiment_id) VALUES ('r', 0)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="holds runs. Make a copy of the file; then restore a backup"):
        client_of(uri(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", "a database without tables"])
def test_an_empty_file_is_as_good_as_none(tmp_path, content):
    path = tmp_path / "runs.db"
    path.write_bytes(b"")
    if content:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 1")
            connection.execute("VACUUM")
    with pytest.raises(NoStoreError):
        reading_client(uri(path))
    prepare(uri(path))
    assert whole(path)


def foreign(path: Path, kind: str) -> str:
    if kind == "text":
        path.write_text("name: a file of another kind\n" * 50)
        return "is no sqlite database"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()
    return "of another program (tables: bookmarks)"


@pytest.mark.parametrize("kind", ["text", "database"])
@pytest.mark.parametrize("command", ["report x", "status x", "stop x", "ui", "failures x", "logs x"])
def test_another_programs_file_is_an_error_at_once_and_stays_as_it_is(tmp_path, kind, command):
    path = tmp_path / "other.db"
    said = foreign(path, kind)
    before = path.read_bytes()
    done = CliRunner().invoke(main, [*command.split(), "--uri", uri(path)])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    with pytest.raises(StoreError, match="name another file with --uri"):
        client_of(uri(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "command",
    ["report x", "status", "status x", "stop x", "ui", "ui x", "failures x", "logs x", "compare a b", "export x y"],
)
def test_commands_that_look_make_nothing(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*command.split(), "--uri", "sqlite:///runs.db"])
    assert done.exit_code == 2, done.output
    assert "no MLflow store at" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_or_replaced_while_it_is_recorded_in_is_an_error_at_once(tmp_path):
    path = tmp_path / "runs.db"
    path.write_bytes(_tables())
    client = client_of(uri(path))
    run = client.create_run("0").info.run_id
    path.rename(tmp_path / "moved.db")
    assert "is gone since" in sqlite_file.moved()
    with pytest.raises(StoreError, match="is gone since this command opened it. Put it back"):
        client_of(uri(path))
    assert not path.exists()
    shutil.copy(tmp_path / "moved.db", path)
    assert "was replaced by another file" in sqlite_file.moved()
    (tmp_path / "moved.db").replace(path)
    assert sqlite_file.moved() is None
    client_of(uri(path)).set_tag(run, "key", "value")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made: .*; choose another place with tracking.uri"):
        client_of(uri(tmp_path / "file" / "runs.db"))


def _hold(path: Path, ready: object, seconds: float) -> None:
    with sqlite_file.lock(path, 1.0):
        ready.set()
        time.sleep(seconds)


@pytest.mark.processes
def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    path = tmp_path / "runs.db"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, ready, 600.0))
    holder.start()
    assert ready.wait(120)
    with pytest.raises(StoreError, match="another process is making"), sqlite_file.lock(path, 0.2):
        pass
    holder.kill()
    holder.join()
    with sqlite_file.lock(path, 5.0):
        pass
    assert list(tmp_path.iterdir()) == []


def _schema(path: Path) -> list[tuple]:
    """Without the texts of constraints, which MLflow writes in any order."""
    with closing(sqlite3.connect(path)) as store:
        named = list(store.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2"))
        columns = [
            row for kind, name, _ in named if kind == "table" for row in store.execute(f"PRAGMA table_info({name})")
        ]
        return named + columns + list(store.execute("SELECT * FROM alembic_version"))


def test_a_second_store_is_a_copy_of_the_first_ones_tables(tmp_path, cache, monkeypatch):
    from mlflow.store.db import utils

    first, second, third = (tmp_path / f"{name}.db" for name in ("first", "second", "third"))
    client_of(uri(first)).create_experiment("one")
    (kept,) = (cache / "lqray").iterdir()
    made = utils._initialize_tables
    monkeypatch.setattr(utils, "_initialize_tables", lambda engine: pytest.fail("it was made again"))
    assert [one.name for one in client_of(uri(second)).search_experiments()] == ["Default"]
    assert _schema(first) == _schema(second)
    # What was kept is damaged: the tables are made.
    monkeypatch.setattr(utils, "_initialize_tables", made)
    kept.write_bytes(kept.read_bytes()[:5000])
    assert [one.name for one in client_of(uri(third)).search_experiments()] == ["Default"]
    assert _schema(third) == _schema(second)


def test_a_cache_that_cannot_be_written_is_none(tmp_path, cache):
    cache.rmdir()
    cache.write_text("a file")
    assert client_of(uri(tmp_path / "it.db")).search_experiments()
