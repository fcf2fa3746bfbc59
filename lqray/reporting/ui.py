"""The MLflow UI on a store, at the page where an experiment's runs compare."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser

import click

from lqray.experiment.secrets import masked
from lqray.reporting.records import experiment_id

_START_SECONDS = 60.0


def charts_path(identifier: str) -> str:
    """The UI's path of the chart view of an experiment."""
    return f"/#/experiments/{identifier}/runs?compareRunsMode=CHART"


def serve_ui(uri: str, experiment: str | None, port: int, browser: bool | None) -> int:
    """Serve the UI of a sqlite or SQL store on this machine until Ctrl-C; for a server, show its address.

    Returns the server's exit status. Raises UnknownExperimentError.
    """
    path = charts_path(experiment_id(uri, experiment)) if experiment else "/"
    if browser is None:
        browser = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin")
    if uri.startswith(("http://", "https://")):
        _show(uri.rstrip("/") + path, browser)
        return 0
    free = _free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free), "--workers", "1"]
    # A session of its own, so that the server and all that it starts can be ended together.
    # Not as an argument: whoever lists processes would see its password.
    server = subprocess.Popen(
        command,
        env=os.environ | {"MLFLOW_BACKEND_STORE_URI": uri},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if not _answers(free, server):
            _end(server)
            click.echo(f"the MLflow server did not start:\n{masked(server.communicate()[1])}", err=True)
            return 1
        _show(f"http://127.0.0.1:{free}{path}", browser)
        click.echo("Ctrl-C ends it.")
        server.communicate()
        return server.returncode
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _end(server: subprocess.Popen[str]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _show(url: str, browser: bool) -> None:
    click.echo(masked(url))
    if browser:
        webbrowser.open(url)


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} to {first + 99}")


def _answers(port: int, server: subprocess.Popen[str]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False
