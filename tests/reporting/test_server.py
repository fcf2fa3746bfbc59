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
