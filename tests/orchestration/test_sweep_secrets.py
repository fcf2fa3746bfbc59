"""Secrets planted where a user has them, and looked for in everything that a sweep prints, writes and leaves; and where
the processes of a sweep listen."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.testing.heads import free_port, without
from tests.testing.sweeps import marked

TEXT = """
name: planted
base:
  data: {name: digits}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 20, batch_size: 16}
  workers: 2
  quantizer: {method: alq, bucket_size: 128, update_at: [0]}
tracking: {log_model: true}
"""
SECRET = "pl4nted"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
# The token is where it belongs, and so are the user's own files; both have to be for the user alone.
KEPT = (".netrc", ".env", ".ray/auth_token")


def found_in(folder: Path) -> set[str]:
    """Files below that hold the secret, Ray's while it writes them, too."""
    found = set()
    # os.walk passes over a folder that is removed meanwhile.
    for file in (Path(place) / name for place, _, names in os.walk(folder) for name in names):
        try:
            if stat.S_ISREG(file.lstat().st_mode) and SECRET.encode() in file.read_bytes():
                found.add(re.sub(r"\d{3,}", "N", str(file.relative_to(folder))))
        except OSError:  # it is gone
            continue
    return found


def listening(mark: Path) -> set[str]:
    """(program, address) of the sockets on which marked processes wait for others."""
    found = set()
    for number in marked(mark):
        try:
            process = psutil.Process(number)
            name = " ".join(process.cmdline())[:80]
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN and one.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                    found.add(f"{name}: {one.laddr.ip}")
        except psutil.Error:
            continue
    return found


@pytest.fixture
def home(tmp_path):
    """With secrets in a password file and beside the experiment, and a short folder for temporary files."""
    for name in (".netrc", ".env"):
        (tmp_path / name).write_text(f"machine 127.0.0.1 login ada password {SECRET}-in{name}\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "planted.yaml").write_text(TEXT.replace("planted", tmp_path.name))
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Port of an MLflow server."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command: list[str] = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/lqray.db", "--artifacts-destination", f"{folder}/artifacts"]
    server = subprocess.Popen(
        command,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=(folder / "server.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "server.txt").read_text()
                time.sleep(0.2)
        yield port
        assert found_in(folder) == set()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.ray
@pytest.mark.parametrize("launcher", ["inline", "isolated", pytest.param("warm", marks=pytest.mark.slow)])
def test_a_sweep_tells_no_secret_and_nobody_outside_reaches_it(home, store, launcher):
    temporary = Path(f"/tmp/lqs{os.getpid()}{launcher[0]}")  # Ray's sockets want a short one
    temporary.mkdir(mode=0o755)
    environment = without("RAY_AUTH", "AWS_", "MLFLOW_", "TMPDIR") | {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "MLFLOW_TRACKING_URI": f"http://ada:{SECRET}-in-the-uri@127.0.0.1:{store}",
        "MY_API_KEY": f"{SECRET}-of-another-program",
        "LQRAY_TEST_MARK": str(home),
    }
    environment |= {name: f"{SECRET}-{name}" for name in CREDENTIALS}
    leaks, open_to_all = set(), set()
    try:
        with (home / "output.txt").open("w") as output:
            sweep = subprocess.Popen(
                [sys.executable, "-m", "lqray", "run", "planted.yaml", "--launcher", launcher, "--verbose"],
                cwd=home,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            while True:
                leaks |= found_in(temporary)
                open_to_all |= listening(home)
                try:
                    sweep.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    continue
        said = (home / "output.txt").read_text()
        assert sweep.returncode == 0, said
        leaks |= found_in(temporary)
    finally:
        subprocess.run(["rm", "-rf", temporary], check=True)
    assert leaks == set()
    assert found_in(home) == {".netrc", ".env"}
    assert "View run" not in said
    assert open_to_all == set()
    for name in KEPT:
        if (home / name).exists():
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
