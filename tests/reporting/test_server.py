"""`lqray server`: MLflow for several machines, and who is let in."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from lqray.cli import main
from lqray.reporting import server
from tests.testing.heads import free_port

PASSWORD = "a long password of the admin"
SEARCH = "/api/2.0/mlflow/experiments/search"


@contextmanager
def serving(folder: Path, *options: str, **environment: str):
    """URL of a server, and a function for what it has printed."""
    port = free_port()
    output = folder / "server.txt"
    process = subprocess.Popen(
        [sys.executable, "-m", "lqray", "server", "--port", str(port), "--workers", "1", *options],
        cwd=folder,
        env=os.environ | environment,
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while "Ctrl-C ends it" not in output.read_text() and time.monotonic() < deadline:
            assert process.poll() is None, output.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", output.read_text
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


def search(url: str, **options):
    return requests.post(url + SEARCH, json={"max_results": 10}, timeout=60, **options)


@pytest.mark.cluster
def test_basic_auth_lets_in_who_knows_the_password_and_is_asked_by_name(tmp_path):
    options = ["--basic-auth", "--allowed-hosts", "mlflow.example.org,127.0.0.1:*", "--host", "0.0.0.0"]
    with serving(tmp_path, *options, MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD) as (url, printed):
        assert search(url).status_code == 401
        assert search(url, auth=("admin", "wrong")).status_code == 401
        assert search(url, auth=("admin", PASSWORD)).status_code == 200
        there = {"Host": "mlflow.example.org"}
        assert search(url, auth=("admin", PASSWORD), headers=there).status_code == 200
        assert search(url, auth=("admin", PASSWORD), headers={"Host": "evil.example.org"}).status_code == 403

        # lqray itself, as on a machine of the cluster: its own files and the server's artifacts, by user and password.
        user = {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        trial = tmp_path / "one.yaml"
        trial.write_text(
            "name: one\nbase:\n  data: {name: digits}\n  model: {name: mlp, layers: [4]}\n"
            "  optimizer: {name: sgd, lr: 0.1}\n  schedule: {iterations: 3, batch_size: 8}\n"
            "  quantizer: {method: qsgd_inf, bucket_size: 64}\n"
        )
        command = [sys.executable, "-m", "lqray", "run", trial.name, "--launcher", "inline"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | user, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr + printed()
        (experiment,) = [
            one for one in search(url, auth=("admin", PASSWORD)).json()["experiments"] if one["name"] == "one"
        ]
        assert experiment["artifact_location"].startswith("mlflow-artifacts:/")
        assert list(tmp_path.glob("lqray-artifacts/**/experiment.yaml"))
        command_line = " ".join(Path(f"/proc/{one}/cmdline").read_text() for one in children_of(os.getpid()))
        assert "mlflow" in command_line
        assert "lqray.db" not in command_line


def children_of(process: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def test_basic_auth_without_an_admin_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    result = CliRunner().invoke(main, ["server", "--basic-auth", "--port", str(free_port())])
    assert result.exit_code == 2
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in result.stderr


def test_a_port_that_is_taken_is_said_at_once(tmp_path, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = CliRunner().invoke(main, ["server", "--port", str(other.getsockname()[1])])
    assert result.exit_code == 2
    assert "in use" in result.stderr


SLOW = """
import sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    time.sleep(7)
"""


@pytest.mark.cluster
def test_workers_that_start_for_longer_than_uvicorn_waits_by_default_are_left_to_start(tmp_path):
    """As on a machine that is busy: after 5 s they would be killed, and begin again."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path / "slow"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with serving(tmp_path, "--workers", "2", PYTHONPATH=path, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as (
        url,
        said,
    ):
        assert search(url).status_code == 200
        assert "died" not in said()


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (64, 4)])
def test_a_server_has_one_worker_for_two_cores(monkeypatch, cores, workers):
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(server, "serve_team", lambda options: asked.append(options.workers) or 0)
    for chosen in ([], ["--workers", "7"]):
        assert CliRunner().invoke(main, ["server", *chosen]).exit_code == 0
    assert asked == [workers, 7]


FAKE = """
import os, sys, time
began = time.monotonic()
print("arguments", *sys.argv[1:])
print("uvicorn", os.environ.get("MLFLOW_UVICORN_OPTS"), file=sys.stderr)
print("jobs", os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION"))
WORK
"""


def fake(folder: Path, monkeypatch, work: str) -> None:
    """A module mlflow that says what it was asked for, and does something."""
    (folder / "mlflow.py").write_text(FAKE.replace("WORK", work))
    monkeypatch.chdir(folder)


def served(port: int, logged: bool = False, ready=lambda: None) -> int:
    return server.serve(["--port", str(port)], {}, "127.0.0.1", port, ready, logged)


@pytest.mark.parametrize(
    ("known", "passed"),
    [
        ({}, "--timeout-worker-healthcheck 300"),
        ({"MLFLOW_UVICORN_OPTS": "--backlog 9"}, "--timeout-worker-healthcheck 300 --backlog 9"),
        ({"MLFLOW_GUNICORN_OPTS": "--threads 2"}, "None"),
    ],
)
def test_a_server_that_ends_is_quoted_with_all_that_it_said(tmp_path, monkeypatch, capfd, known, passed):
    monkeypatch.delenv("MLFLOW_UVICORN_OPTS", raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    fake(tmp_path, monkeypatch, "for n in range(100_000): print('a line of many', n)\nsys.exit('no such table')")
    assert served(free_port()) == 1
    said = capfd.readouterr().err
    assert "did not start: it ended with exit code 1\nwhat it said itself:\n" in said
    assert "a line of many 99999" in said
    assert said.rstrip().endswith("no such table")
    assert len(said.splitlines()) == 102
    fake(tmp_path, monkeypatch, "sys.exit(3)")
    assert served(free_port()) == 1
    said = capfd.readouterr().err
    assert "arguments server --port" in said
    assert f"uvicorn {passed}\n" in said


@pytest.mark.parametrize("chosen", [None, "true"])
def test_mlflows_job_runners_start_where_somebody_asks_for_them(tmp_path, monkeypatch, capfd, chosen):
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", raising=False)
    if chosen:
        monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", chosen)
    fake(tmp_path, monkeypatch, "sys.exit(3)")
    served(free_port())
    assert f"jobs {chosen or 'false'}\n" in capfd.readouterr().err


def test_what_a_server_of_the_terminal_said_is_above_the_failure(tmp_path, monkeypatch, capfd):
    fake(tmp_path, monkeypatch, "print('my own words', file=sys.stderr); sys.exit(3)")
    assert served(free_port(), logged=True) == 1
    said = capfd.readouterr().err
    assert "did not start: it ended with exit code 3" in said
    assert said.index("my own words") < said.index("did not start")
    assert "above" in said


def test_a_server_that_says_nothing_and_one_that_ends_later(tmp_path, monkeypatch, capfd):
    (tmp_path / "mlflow.py").write_text("raise SystemExit(4)")
    monkeypatch.chdir(tmp_path)
    assert served(free_port()) == 1
    assert "it ended with exit code 4\nit said nothing\n" in capfd.readouterr().err
    listening = "import socket; one = socket.create_server(('127.0.0.1', int(sys.argv[3]))); one.accept()"
    fake(tmp_path, monkeypatch, f"{listening}; print('the disk is full'); sys.exit(5)")
    seen = []
    assert served(free_port(), ready=lambda: seen.append("ready")) == 5
    assert seen == ["ready"]
    said = capfd.readouterr().err
    assert "the MLflow server ended with exit code 5\n" in said
    assert "the disk is full" in said


@pytest.mark.parametrize("works", [True, False])
def test_a_server_is_waited_for_as_long_as_it_works(tmp_path, monkeypatch, capfd, works):
    """It answers after more than the seconds that one which does nothing is given."""
    monkeypatch.setattr(server, "_IDLE_SECONDS", 4.0)
    monkeypatch.setattr(server, "_WORK_SECONDS", 0.05)
    monkeypatch.setattr(server, "_LOOKED_EVERY", 0.5)
    monkeypatch.setattr(server, "_SAID_AFTER", 0.5)
    until = "while time.monotonic() < began + 8: pass" if works else "time.sleep(60)"
    listening = "import socket; one = socket.create_server(('127.0.0.1', int(sys.argv[3]))); one.accept()"
    fake(tmp_path, monkeypatch, f"{until}\n{listening}")
    seen = []
    assert served(free_port(), ready=lambda: seen.append("ready")) == (0 if works else 1)
    said = capfd.readouterr().err
    assert "still starting after 0.5 s" in said
    if works:
        assert seen == ["ready"]
    else:
        assert "it did nothing for 4 s" in said
        assert not seen


def test_a_server_whose_workers_die_for_ever_is_given_up(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(server, "_START_SECONDS", 3.0)
    fake(tmp_path, monkeypatch, "while True: pass")
    assert served(free_port()) == 1
    assert "within 3 s" in capfd.readouterr().err
