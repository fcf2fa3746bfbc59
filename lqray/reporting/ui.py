"""The MLflow UI on a store, at the page where an experiment's runs compare."""

from __future__ import annotations

import os
import sys
import webbrowser

import click

from lqray.experiment.foreign import in_line
from lqray.experiment.secrets import masked
from lqray.reporting.server import free_port, serve
from lqray.reporting.ui_publish import publish_view
from lqray.store.client import exists
from lqray.store.errors import NoStoreError


def serve_ui(uri: str, experiment: str | None, port: int, browser: bool | None) -> int:
    """Serve the UI of a sqlite or SQL store on this machine until Ctrl-C; for a server, show its address.

    Returns the server's exit status. Raises UnknownExperimentError; StoreError, also where there is no store: to look
    at one makes none.
    """
    path = _page(uri, experiment) if experiment else "/"
    if browser is None:
        browser = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin")
    if uri.startswith(("http://", "https://")):
        _show(uri.rstrip("/") + path, browser)
        return 0
    free = free_port(port)

    def ready() -> None:
        _show(f"http://127.0.0.1:{free}{path}", browser)
        click.echo("Ctrl-C ends it.")

    if not exists(uri):
        raise NoStoreError(uri)
    arguments = ["--host", "127.0.0.1", "--port", str(free), "--workers", "1"]
    # By environment: everyone on the machine sees a command line, and the store's address may hold a password.
    return serve(arguments, {"MLFLOW_BACKEND_STORE_URI": uri}, "127.0.0.1", free, ready, logged=False)


def _page(uri: str, experiment: str) -> str:
    published = publish_view(uri, experiment)
    if published.missing:
        click.echo(f"Shown without the view of its methods and their baseline: {in_line(published.missing)}", err=True)
    return published.path


def _show(url: str, browser: bool) -> None:
    click.echo(masked(url))
    if browser:
        webbrowser.open(url)
