"""Reading MLflow's tables gives what MLflow's client gives, or says why not."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow.store.db import utils

from lqray.cli import main
from lqray.experiment.store import absolute_store, sqlite_path, store_folder
from lqray.reporting.records import read_records
from lqray.store.errors import StoreBusyError, StoreError
from lqray.store.runs import latest_runs
from lqray.store.tables import REVISIONS, connected
from tests.testing.stores import Store


def change(store: Store, *statements: str) -> None:
    with closing(sqlite3.connect(sqlite_path(store.uri))) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def names(store: Store, uri: str | None = None) -> tuple[list[str], list[str]]:
    """As both readers say."""
    found = latest_runs(uri or store.uri, store.experiment).values(), read_records(uri or store.uri, store.experiment)
    return sorted(one.name for one in found[0]), sorted(one.name for one in found[1])


def test_the_installed_mlflow_has_tables_that_are_read():
    assert utils._get_latest_schema_revision() in REVISIONS


def test_experiments_of_one_name_in_two_workspaces_do_not_merge(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.run("alq", 1, [0.5])
    change(store, "UPDATE experiments SET workspace = 'theirs' WHERE name = 'known'")
    store.number = store.client.create_experiment("known")
    store.run("qsgd", 1, [0.5])
    assert names(store) == (["qsgd-seed1"],) * 2
    monkeypatch.setenv("MLFLOW_WORKSPACE", "theirs")
    assert names(store) == (["qsgd-seed1"],) * 2, "MLflow heeds it only where workspaces are enabled"
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert names(store) == (["alq-seed1"],) * 2


def test_a_launch_records_in_a_workspace_where_mlflow_places_artifacts(tmp_path):
    text = """
name: placed
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [4]}
  optimizer: {name: sgd, lr: 0.05}
  workers: 1
  schedule: {iterations: 2, batch_size: 4}
  quantizer: {method: full_precision}
"""
    (tmp_path / "placed.yaml").write_text(text)
    environment = os.environ | {"MLFLOW_ENABLE_WORKSPACES": "true", "MLFLOW_WORKSPACE": "default"}
    command = [sys.executable, "-m", "lqray", "run", "placed.yaml", "--launcher", "inline"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(1/1) full_precision: finished" in done.stdout + done.stderr


def test_tables_of_another_revision_are_left_to_mlflow_by_both_readers(tmp_path):
    store = Store(tmp_path)
    store.run("alq", 1, [0.5])
    change(store, "UPDATE alembic_version SET version_num = '000000000000'")
    with connected(store.uri) as connection:
        assert connection is None
    # MLflow's client, which this process has opened before, reads them as they are.
    assert names(store) == (["alq-seed1"],) * 2


def test_both_readers_say_the_same_of_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("lqray.store.sqlite_file._LOCK_SECONDS", 0.05)
    monkeypatch.setattr("lqray.store.tables._LOCK_SECONDS", 0.05)
    store = Store(tmp_path)
    store.run("alq", 1, [0.5])
    readers = (lambda: latest_runs(store.uri, "known"), lambda: read_records(store.uri, "known"))
    with closing(sqlite3.connect(tmp_path / "lqray.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for read in readers:
            with pytest.raises(StoreBusyError, match="cannot be read now: database is locked"):
                read()
    change(store, "ALTER TABLE runs RENAME COLUMN start_time TO begun")
    for read in readers:
        with pytest.raises(StoreError, match="cannot be read: no such column: r.start_time"):
            read()
    (tmp_path / "lqray.db").write_bytes((tmp_path / "lqray.db").read_bytes()[:6000])
    for read in readers:
        with pytest.raises(StoreError, match="lqray.db"):
            read()


@pytest.mark.parametrize("folder", ["a b", "q?m", "a%20b", "100%", "a#b", "ü"])
def test_a_store_is_read_wherever_it_lies(tmp_path, folder, monkeypatch):
    (tmp_path / folder).mkdir()
    plain = Store(tmp_path)
    plain.run("alq", 1, [0.5])
    (tmp_path / "lqray.db").rename(tmp_path / folder / "lqray.db")
    monkeypatch.chdir(tmp_path / folder)
    for uri in (absolute_store("sqlite:///lqray.db"), absolute_store("sqlite:///lqray.db?timeout=5")):
        assert sqlite_path(uri) == tmp_path / folder / "lqray.db"
        assert store_folder(uri) == tmp_path / folder
        assert names(plain, uri) == (["alq-seed1"],) * 2
        assert absolute_store(uri) == uri
    for command in ("report known --format csv", "status known"):
        done = CliRunner().invoke(main, [*command.split(), "--uri", "sqlite:///lqray.db?timeout=5"])
        assert done.exit_code == 0, done.output
        assert "alq" in done.stdout or "1 finished" in done.stdout
    assert sorted(one.name for one in tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///lqray.db", "lqray.db"),
        ("sqlite:////abs/lqray.db", "/abs/lqray.db"),
        ("sqlite:////abs/lqray.db?timeout=5&isolation_level=IMMEDIATE", "/abs/lqray.db"),
        ("sqlite:////abs/my%20runs.db", "/abs/my runs.db"),
        ("sqlite:////abs/q%3Fm/lqray.db", "/abs/q?m/lqray.db"),
        ("sqlite:////abs/q?m/lqray.db", "/abs/q?m/lqray.db"),
        ("sqlite+pysqlite:////abs/lqray.db", "/abs/lqray.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql+psycopg://a:b@host/lqray?sslmode=require", None),
    ],
)
def test_addresses(uri, path):
    assert sqlite_path(uri) == (Path(path) if path else None)


def test_mlflow_writes_to_the_file_that_is_read(tmp_path, monkeypatch):
    from sqlalchemy.engine import make_url

    for folder in ("a b", "q?m", "a%20b", "100%", "50%25"):
        uri = absolute_store("sqlite:///x.db?timeout=5", tmp_path / folder)
        assert make_url(uri).database == str(tmp_path / folder / "x.db")
        assert dict(make_url(uri).query) == {"timeout": "5"}
