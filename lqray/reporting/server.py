"""MLflow's own server, as a process that ends with this one: behind `lqray ui`, and for a team as `lqray server`."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import click
import psutil

from lqray.store.client import prepare
from lqray.store.outage import patiently

_IDLE_SECONDS = 120.0
"""A server that has not answered yet, and has done nothing for so long, will not."""
_WORK_SECONDS = 1.0
"""Of a processor: less is nothing."""
_START_SECONDS = 1800.0
"""Nor will one that has worked for so long: its workers may die one after the other."""
_SAID_AFTER = 60.0
_LOOKED_EVERY = 5.0
_WORKER_SECONDS = 300
"""uvicorn kills a worker that does not answer it for so long, also while it imports; by default 5."""
_MOST_WORKERS = 4
_LAST_LINES = 100
_HERE = ("127.0.0.1", "localhost", "::1")
# MLflow's job runners evaluate language models: seven processes that records of trainings do not need.
_UNLESS_SAID = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
# Everybody who may log in may write: the claims by which sweeps share trials are one experiment's for all users.
_USERS = """[mlflow]
default_permission = EDIT
database_uri = sqlite:///{folder}/lqray-users.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class ServerError(RuntimeError):
    """The MLflow server cannot be started so."""


@dataclass(frozen=True)
class ServerOptions:
    """The options of `lqray server`; see its help. store: an absolute URI of a database. folder: where what is not said
    to be elsewhere is kept, absolute."""

    store: str
    artifacts: str
    host: str
    port: int
    allowed_hosts: str | None
    workers: int
    basic_auth: bool
    folder: Path


def serve_team(options: ServerOptions) -> int:
    """Serve until Ctrl-C or SIGTERM. Returns the server's exit status. Raises ServerError, StoreError."""
    _check_free(options.host, options.port)
    patiently(lambda: prepare(options.store))
    arguments = ["--host", options.host, "--port", str(options.port), "--workers", str(options.workers)]
    arguments += ["--artifacts-destination", options.artifacts]
    hosts = options.allowed_hosts or (None if options.host in _HERE else ",".join(names_of_this_machine(options.port)))
    if hosts:
        arguments += ["--allowed-hosts", hosts]
    # By environment: everyone on the machine sees a command line, and the store's address may hold a password.
    environment = {"MLFLOW_BACKEND_STORE_URI": options.store}
    with TemporaryDirectory(prefix="lqray-") as temporary:
        if options.basic_auth:
            arguments += ["--app-name", "basic-auth"]
            environment |= _authentication(options.folder, Path(temporary))
        shown = socket.getfqdn() if options.host in ("0.0.0.0", "::") else options.host

        def ready() -> None:
            click.echo(f"MLflow answers at http://{shown}:{options.port}. On every machine that records runs there:")
            click.echo(f"  export MLFLOW_TRACKING_URI=http://{shown}:{options.port}")
            if options.basic_auth:
                click.echo("  export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...")
            if hosts:
                click.echo(f"It answers to these names only (--allowed-hosts): {hosts}")
            click.echo("Ctrl-C ends it.")

        return serve(arguments, environment, options.host, options.port, ready, logged=True)


def serve(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    host: str,
    port: int,
    ready: Callable[[], None],
    logged: bool,
) -> int:
    """Run `mlflow server` until it ends, or Ctrl-C or SIGTERM ends it and all that it started; returns its exit status.

    environment: beside this process's. ready: called once it answers at host and port. logged: whether it may write to
    the terminal.
    """
    # A session of its own, so that the server and all that it starts can be ended together.
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments],
        env={**_UNLESS_SAID, **os.environ, **_for_slow_workers(os.environ), **environment},
        stdout=None if logged else subprocess.PIPE,
        stderr=None if logged else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    words = _LastWords(server.stdout)
    with _interruptible():
        try:
            why = _wait_until_it_answers(host, port, server)
            if why is None:
                ready()
                server.wait()
            status = server.poll()
            _end(server)
            if why or (status and not logged):
                became = f"did not start: {why}" if why else f"ended with exit code {status}"
                click.echo(f"the MLflow server {became}", err=True)
                click.echo("what it said itself is above" if logged else words.shown(), err=True)
            return 1 if why else status or 0
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)


def usual_workers() -> int:
    """Processes of a server on this machine: one for two cores, from 1 to 4. Each imports MLflow, which takes many
    seconds where they are more than the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, cores // 2))


def free_port(first: int) -> int:
    """The first port from here on that is free on this machine."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} to {first + 99}")


def names_of_this_machine(port: int) -> list[str]:
    """What a browser may call this machine, with a port: its names and addresses."""
    names = {"localhost", socket.gethostname(), socket.getfqdn()}
    for addresses in psutil.net_if_addrs().values():
        names |= {one.address for one in addresses if one.family == socket.AF_INET}
    return [f"{name}:{port}" for name in sorted(names)]


def _authentication(folder: Path, temporary: Path) -> dict[str, str]:
    """What MLflow's basic-auth app wants in its environment. Raises ServerError."""
    if importlib.util.find_spec("flask_wtf") is None:
        raise ServerError(
            "--basic-auth needs Flask-WTF, which is not installed: pip install -e '.[server]' in lqray's source tree"
        )
    found = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32)
    }
    if "MLFLOW_AUTH_CONFIG_PATH" in os.environ:
        return found
    if not (folder / "lqray-users.db").exists() and not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        raise ServerError(
            f"--basic-auth: there are no users yet ({folder}/lqray-users.db). Set MLFLOW_AUTH_ADMIN_PASSWORD in the "
            "environment for this first start, to the password of the user `admin`; it is not needed again"
        )
    config = temporary / "basic_auth.ini"
    config.write_text(_USERS.format(folder=folder), encoding="utf-8")
    return found | {"MLFLOW_AUTH_CONFIG_PATH": str(config)}


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within it, SIGTERM is Ctrl-C, and Ctrl-C is heard even where the shell that started this ignores it."""
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _end(server: subprocess.Popen[str]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


class _LastWords:
    """The last lines of a stream, which is read to its end, so that nobody waits for it to be read."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str] | None) -> None:
        self._lines.extend(stream or ())

    def shown(self) -> str:
        """Of a process that has ended."""
        self._reader.join(timeout=5)
        return "\n".join(["what it said itself:", *map(str.rstrip, self._lines)]) if self._lines else "it said nothing"


def _for_slow_workers(known: Mapping[str, str]) -> dict[str, str]:
    """Environment in which MLflow has uvicorn wait for its workers, unless `known`, the user's, says for how long."""
    release = [int(part) for part in version("uvicorn").split(".")[:2]]
    if release < [0, 37] or known.get("MLFLOW_GUNICORN_OPTS") is not None:
        return {}
    own = known.get("MLFLOW_UVICORN_OPTS", "")
    return {"MLFLOW_UVICORN_OPTS": f"--timeout-worker-healthcheck {_WORKER_SECONDS} {own}".strip()}


def _wait_until_it_answers(host: str, port: int, server: subprocess.Popen[str]) -> str | None:
    """None as soon as it does; else why it is not waited for any longer. A slow machine has time, as long as the server
    works."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    began = worked = looked = time.monotonic()
    used, said = 0.0, False
    while server.poll() is None:
        try:
            with socket.create_connection((address, port), timeout=1.0):
                return None
        except OSError:
            time.sleep(0.1)
        now = time.monotonic()
        if now - looked > _LOOKED_EVERY:
            looked, now_used = now, _processor_seconds(server.pid)
            if abs(now_used - used) >= _WORK_SECONDS:
                used, worked = now_used, now
        if now - worked > _IDLE_SECONDS:
            return f"nothing answered at {host}:{port}, and it did nothing for {_IDLE_SECONDS:g} s"
        if now - began > _START_SECONDS:
            return f"nothing answered at {host}:{port} within {_START_SECONDS:g} s"
        if now - began > _SAID_AFTER and not said:
            said = True
            click.echo(f"MLflow's server is still starting after {_SAID_AFTER:g} s, and is waited for ...", err=True)
    return f"it ended with exit code {server.returncode}"


def _processor_seconds(process: int) -> float:
    """That a process and those that it started have used."""
    total = 0.0
    try:
        found = psutil.Process(process)
        for one in (found, *found.children(recursive=True)):
            total += sum(one.cpu_times()[:4])  # its own, and of children that have ended
    except psutil.Error:  # one has just ended
        pass
    return total
