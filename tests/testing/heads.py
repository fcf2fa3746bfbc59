"""Ray heads of a test's own: own ports, folder, token and processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.testing.sweeps import marked

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0" * 63 + "1"


@dataclass(frozen=True)
class Head:
    """address: of Ray. dashboard: URL of the dashboard and job server, "" without."""

    address: str
    dashboard: str
    log: Path


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many, each another: one that was asked for and given back may come again."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def without(*prefixes: str) -> dict[str, str]:
    """Environment of this process, but variables that begin so; what keeps Ray's workers from starving stays."""
    kept = "RAY_worker_niceness"
    return {key: value for key, value in os.environ.items() if key == kept or not key.startswith(prefixes)}


@contextmanager
def ray_head(
    folder: Path, dashboard: bool, cpus: int = 2, growing: dict | None = None, **environment: str
) -> Iterator[Head]:
    """A Ray head that asks for TOKEN, in a process group of its own that ends with the context.

    growing: a file of the cluster launcher, whose workers are processes of this machine. environment: of its processes,
    and so of its jobs; the lqray that is installed there is this one.
    """
    port, dashboard_port, client_port, agent_port = free_ports(4)
    arguments = ["--head", f"--port={port}", f"--num-cpus={cpus}", "--block", f"--temp-dir={folder}"]
    arguments += [f"--ray-client-server-port={client_port}", "--object-store-memory=100000000"]
    arguments += [f"--dashboard-agent-listen-port={agent_port}"]
    arguments += [f"--include-dashboard={dashboard}".lower(), f"--dashboard-port={dashboard_port}"]
    if growing:
        config = growing | {"provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"}}
        (folder / "growing.json").write_text(json.dumps(config))
        arguments += [f"--autoscaling-config={folder}/growing.json"]
    log = folder / "head.log"
    clean = without("RAY_", "MLFLOW_TRACKING", "PYTHONPATH")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
        cwd=folder,
        env=clean
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "LQRAY_TEST_MARK": str(folder),
        }
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        | environment,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    try:
        while "Ray runtime started" not in log.read_text() and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        assert "Ray runtime started" in log.read_text(), log.read_text()
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}" if dashboard else "", log)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for number in marked(folder):  # `ray start --block` may wait half a minute for its own
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
