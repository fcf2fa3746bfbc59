import os
import signal
import socket
import subprocess
import sys
import time

import pytest


@pytest.fixture
def mlflow_server(tmp_path):
    """A function that serves a store on this machine and returns the server's address."""
    servers = []

    def serve(uri: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port)]
        log = tmp_path / f"server-{port}.log"
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        servers.append(
            subprocess.Popen(
                [*command, "--workers", "1", "--artifacts-destination", str(tmp_path / "artifacts")],
                env=environment,
                stdout=log.open("w"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        deadline = time.monotonic() + 90
        while True:
            assert time.monotonic() < deadline, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return f"http://127.0.0.1:{port}"
            except OSError:
                time.sleep(0.2)

    yield serve
    for server in servers:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
