"""What is waited for, for how long, and what the user is told: one rule for a store that is away."""

import os
import socket
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import OperationalError

from lqray.cli import main
from lqray.orchestration.launchers.ray.cluster import ClusterError, check_reachable
from lqray.store import outage
from lqray.store.client import client_of, patient_client, reading_client
from lqray.store.errors import StoreAwayError, StoreBusyError, StoreError
from lqray.store.outage import explained, is_away, patiently
from tests.testing.heads import free_port
from tests.testing.servers import EXPERIMENTS, PAGE, answering, failing
from tests.testing.stores import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Delays of milliseconds, an outage of which nothing was said, and no store of an earlier test."""
    monkeypatch.setattr(outage, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(outage, "_LAST_DELAY", 0.05)
    monkeypatch.setattr(outage, "_outage", outage._Outage())
    monkeypatch.setattr(outage.sqlite_file, "_current", [])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def of_sqlite(text: str) -> OperationalError:
    error = OperationalError("SELECT 1", {}, sqlite3.OperationalError(text))
    error.__cause__ = error.orig
    return error


@pytest.mark.parametrize(
    ("text", "away"),
    [
        ("database is locked", True),
        ("database table is locked", True),
        ("disk I/O error", True),
        ("database or disk is full", True),
        ("no such table: runs", False),
        ("attempt to write a readonly database", False),
        ("unable to open database file", False),
        ("near SELECT: syntax error", False),
    ],
)
def test_what_sqlite_says(text, away):
    bare = of_sqlite(text)
    assert is_away(bare) is away
    wrapped = MlflowException(message=bare, error_code=TEMPORARILY_UNAVAILABLE)
    wrapped.__cause__ = bare
    assert is_away(wrapped) is away


def test_what_others_say():
    assert is_away(ConnectionRefusedError())
    assert is_away(StoreBusyError("locked"))
    assert not is_away(StoreAwayError("waited long enough"))
    assert not is_away(StoreError("gone"))
    assert not is_away(KeyError("a mistake of ours"))
    gone = StoreError("gone")
    assert outage.lost_for_good(gone) is gone
    assert outage.lost_for_good(StoreAwayError("waited long enough")) is None
    assert outage.lost_for_good(StoreBusyError("locked")) is None
    assert not is_away(sqlite3.DatabaseError("file is not a database"))


@pytest.mark.parametrize(
    ("answer", "away"),
    [
        (PAGE, True),
        ((502, "text/html", "<html>Bad Gateway</html>"), True),
        ((404, "text/html", "<html>a proxy's own</html>"), True),
        (failing(500), True),
        (failing(503, "TEMPORARILY_UNAVAILABLE"), True),
        (failing(429, "REQUEST_LIMIT_EXCEEDED"), True),
        ((401, "text/html", "<html>who are you?</html>"), False),
        (failing(403, "PERMISSION_DENIED"), False),
        (failing(404, "RESOURCE_DOES_NOT_EXIST"), False),
        (failing(400, "INVALID_PARAMETER_VALUE"), False),
    ],
)
def test_what_a_server_answers(answer, away):
    with answering(lambda number: answer) as uri, pytest.raises(MlflowException) as raised:
        client_of(uri).search_experiments()
    assert is_away(raised.value) is away, explained(raised.value)


def test_an_address_that_cannot_be_one_is_not_waited_for():
    with pytest.raises(MlflowException) as raised:
        client_of("http://127.0.0.1:notaport").search_experiments()
    assert not is_away(raised.value)


def test_a_server_whose_every_fourth_answer_is_a_page_is_survived_without_a_word(capsys):
    with answering(lambda number: PAGE if number % 4 == 3 else EXPERIMENTS) as uri:
        client = patient_client(uri)
        assert [client.search_experiments()[0].name for _ in range(12)] == ["known"] * 12
        assert [reading_client(uri).search_experiments()[0].name for _ in range(12)] == ["known"] * 12
    assert capsys.readouterr().err == ""


def test_an_outage_is_told_once_by_all_threads_and_its_end_once(capsys):
    over = threading.Event()

    def call() -> str:
        if not over.is_set():
            raise ConnectionRefusedError(111, "Connection refused")
        return "answered"

    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(patiently(call, 60.0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    over.set()
    for thread in threads:
        thread.join(30)
    assert answers == ["answered"] * 4
    away, back = capsys.readouterr().err.splitlines()
    assert "is away since" in away
    assert "Connection refused" in away
    assert "waiting at most 1 min" in away
    assert "Look whether its server runs" in away
    assert "is back after" in back


def test_waiting_ends_after_its_patience_and_when_the_launch_is_told_to_end(monkeypatch):
    def call() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(StoreAwayError, match="cannot be reached: Connection refused. Look whether"):
        patiently(call, 0.1)
    monkeypatch.setattr(outage, "HURRIED", 0.1)
    begun = time.monotonic()
    outage.hasten(lambda: time.monotonic() - begun)
    with pytest.raises(StoreAwayError):
        patiently(call, 600.0)
    assert time.monotonic() - begun < 60


def test_of_calls_within_calls_only_the_outer_one_waits():
    tries: list[int] = []

    def inner() -> None:
        tries.append(1)
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(StoreAwayError):
        patiently(lambda: patiently(inner, 600.0), 0.2)
    assert len(tries) > 1


def test_ctrl_c_ends_a_wait_at_once():
    def call() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outage.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            patiently(call)
    assert outage._outage.waiting == 0


READING = (
    "report x",
    "status x",
    "stop x",
    "failures x",
    "logs x",
    "compare a b",
    "export x y",
    "plot x --kind curves",
)


@pytest.mark.parametrize("command", [*READING, "ui x"])
def test_commands_that_read_give_up_a_dead_server_within_seconds(command, monkeypatch):
    monkeypatch.setattr("lqray.store.client.READ_PATIENCE", 0.3)
    done = CliRunner().invoke(main, [*command.split(), "--uri", f"http://ada:hidden@127.0.0.1:{free_port()}"])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert "cannot be reached: Connection refused. Look whether its server runs" in line
    assert "hidden" not in done.output


def test_a_server_that_takes_connections_and_never_answers_is_given_up_within_seconds(monkeypatch):
    monkeypatch.setattr("lqray.store.client.READ_PATIENCE", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(StoreAwayError, match="cannot be reached: no answer in time"),
    ):
        reading_client(f"http://127.0.0.1:{silent.getsockname()[1]}").search_experiments()


def test_mlflow_and_its_packages_say_nothing_of_a_locked_store(tmp_path, capfd, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr("mlflow.store.db.utils.sql.text", _without_waiting(), raising=True)
    client = client_of(store.uri)
    run = client.create_run(store.number).info.run_id
    with closing(sqlite3.connect(tmp_path / "lqray.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreAwayError, match="database is locked. Another process holds it"):
            patiently(lambda: client.set_tag(run, "key", "value"), 0.3)
    assert "Traceback" not in capfd.readouterr().err


def _without_waiting():
    from sqlalchemy import text

    return lambda words: text(words.replace("busy_timeout = 20000", "busy_timeout = 10"))


def test_a_store_that_is_removed_is_an_error_at_once_and_once(tmp_path, capfd):
    store = Store(tmp_path)
    client = client_of(store.uri)
    run = client.create_run(store.number).info.run_id
    (tmp_path / "lqray.db").unlink()
    capfd.readouterr()  # what MLflow says where it makes a process's first store
    with pytest.raises(StoreError, match="is gone since this command opened it. Put it back"):
        patiently(lambda: client.set_tag(run, "key", "value"))
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "lqray.db").exists()


def test_a_store_that_is_replaced_is_an_error_at_once(tmp_path):
    store = Store(tmp_path)
    client = client_of(store.uri)
    run = client.create_run(store.number).info.run_id
    (tmp_path / "other").mkdir()
    other = Store(tmp_path / "other")
    (tmp_path / "other" / "lqray.db").replace(tmp_path / "lqray.db")
    with pytest.raises(StoreError, match="was replaced by another file"):
        patiently(lambda: client.set_tag(run, "key", "value"))
    assert other


def test_a_server_on_this_machine_is_not_behind_the_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(lambda number: EXPERIMENTS) as uri:
        assert client_of(uri).search_experiments()[0].name == "known"
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1"


def test_another_server_behind_a_dead_proxy_names_the_variable(monkeypatch):
    monkeypatch.setattr("lqray.store.client.READ_PATIENCE", 0.1)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(StoreAwayError, match="HTTP_PROXY is set: name the server in NO_PROXY"):
        reading_client("http://store.example.org:5000").search_experiments()


def test_a_dead_ray_address_is_refused_at_once():
    with pytest.raises(ClusterError, match="nothing answers at RAY_ADDRESS=127.0.0.1:1: Connection refused. Start"):
        check_reachable("127.0.0.1:1")
    for address in ("auto", "local"):
        check_reachable(address)
