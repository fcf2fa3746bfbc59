"""A way to the dashboard of a cluster.yaml's head, which listens on that machine only: an SSH tunnel."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import yaml

from lqray.orchestration.launchers.ray.cluster import ClusterError
from lqray.orchestration.remote.login import changed_key, login

_START_SECONDS = 60.0
_DASHBOARD_PORT = 8265


class Tunnel:
    """From a free port here to the dashboard on the head of the cluster that `config`, a cluster.yaml, describes.

    Made at the first `address`, and again at a later one if it broke. Raises ClusterError.
    """

    def __init__(self, config: Path) -> None:
        self._config = config
        document = _read(config)
        self._document, self._head = document, _head(config, document)
        self._remote = _dashboard_port(document)
        self._local = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """URL of the job server, with a tunnel behind it."""
        if self._process is None or self._process.poll() is not None:
            self._open()
        return f"http://127.0.0.1:{self._local}"

    def close(self) -> None:
        """End it."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _open(self) -> None:
        there = login(self._document, self._head)
        command = ["ssh", "-N", *there.options, "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
        command += ["-L", f"127.0.0.1:{self._local}:127.0.0.1:{self._remote}", there.destination]
        with tempfile.TemporaryFile() as errors:
            try:
                # It shares the terminal, where ssh may ask for a passphrase.
                self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            except OSError as error:
                raise ClusterError(f"ssh cannot be started ({error}); install an SSH client") from error
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(self._local):
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    self.close()
                    said = _text(errors)
                    raise ClusterError(
                        f"no tunnel to {there.destination}, the head that {self._config} names: "
                        + (
                            changed_key(said)
                            or f"{said or 'ssh does not answer'}\nIs the cluster up ({_up(self._config)}), and can you "
                            f"log in (`{there.command}`)?"
                        )
                    )
                time.sleep(0.1)


def _up(config: Path) -> str:
    return f"`ray up {shlex.quote(str(config))}`"


def _read(config: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ClusterError(f"--cluster {config}: cannot be read: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("provider"), dict):
        raise ClusterError(f"--cluster {config}: found no provider; allowed: a file of Ray's cluster launcher")
    return document


def _head(config: Path, document: dict[str, Any]) -> str:
    provider = document["provider"]
    if provider.get("type") == "local" and provider.get("head_ip"):
        return str(provider["head_ip"])
    from ray.autoscaler.sdk import get_head_node_ip

    try:
        return str(get_head_node_ip(str(config)))
    except Exception as error:  # whatever the cloud's library raises
        raise ClusterError(
            f"--cluster {config}: its head was not found ({error}). Is the cluster up ({_up(config)}), and are the "
            f"credentials for its {provider.get('type')} account here?"
        ) from error


def _dashboard_port(document: dict[str, Any]) -> int:
    for command in document.get("head_start_ray_commands") or []:
        if found := re.search(r"--dashboard-port[= ](\d+)", str(command)):
            return int(found.group(1))
    return _DASHBOARD_PORT


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()
