"""Commands beside sweeps: ui, server, relocate, doctor."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lqray.cli import shared

if TYPE_CHECKING:
    from lqray.experiment.grid import Experiment


@click.command()
@click.argument("experiment", required=False)
@shared.uri
@click.option("--port", type=int, default=5000, show_default=True, help="The first free port from here on is taken.")
@click.option("--browser/--no-browser", default=None, help="Open a browser; by default only where there is a display.")
def ui(experiment: str | None, uri: str, port: int, browser: bool | None) -> None:
    """Open the MLflow UI; with EXPERIMENT, a name or an experiment file, at that experiment's charts."""
    from lqray.reporting.records import UnknownExperimentError
    from lqray.reporting.ui import serve_ui

    with shared.clear_errors(UnknownExperimentError):
        name, store = shared.store_of(experiment, uri) if experiment else (None, shared.absolute(uri))
        sys.exit(serve_ui(store, name, port, browser))


@click.command()
@click.option(
    "--backend-store-uri",
    default="sqlite:///lqray.db",
    envvar="MLFLOW_BACKEND_STORE_URI",
    show_default=True,
    show_envvar=True,
    help="Database of the runs, for many trials at a time postgresql://...; a password is better in the variable.",
)
@click.option(
    "--artifacts-destination",
    default="lqray-artifacts",
    envvar="MLFLOW_ARTIFACTS_DESTINATION",
    show_default=True,
    show_envvar=True,
    help="Folder or s3://... of artifacts, which clients send to the server.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: on all.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port to listen on.")
@click.option(
    "--allowed-hosts",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    metavar="NAME:PORT,...",
    help="What clients may call the server; by default, with another --host, this machine's names and addresses.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    show_default="one for two cores, at most 4",
    help="Processes that answer.",
)
@click.option(
    "--basic-auth",
    is_flag=True,
    help="Ask for a user's name and password. The first start makes the user admin, of MLFLOW_AUTH_ADMIN_PASSWORD.",
)
def server(
    backend_store_uri: str,
    artifacts_destination: str,
    host: str,
    port: int,
    allowed_hosts: str | None,
    workers: int | None,
    basic_auth: bool,
) -> None:
    """Start an MLflow server that several machines can record to."""
    from lqray.reporting.server import ServerError, ServerOptions, serve_team, usual_workers

    here = Path.cwd()
    artifacts = artifacts_destination if "://" in artifacts_destination else str(here / artifacts_destination)
    with shared.clear_errors(ServerError):
        options = ServerOptions(
            store=shared.absolute(backend_store_uri),
            artifacts=artifacts,
            host=host,
            port=port,
            allowed_hosts=allowed_hosts,
            workers=workers or usual_workers(),
            basic_auth=basic_auth,
            folder=here,
        )
        sys.exit(serve_team(options))


@click.command()
@shared.uri
def relocate(uri: str) -> None:
    """After a project's folder was moved or copied: have the artifacts of its sqlite store looked for where it is now.

    What was recorded stays as it is; no file is moved.
    """
    from lqray.store.experiments import relocate

    with shared.clear_errors():
        names = relocate(shared.absolute(uri))
    shared.say(f"Corrected: {', '.join(names)}" if names else "Nothing to correct: all artifacts are beside the store.")


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@shared.uri
@click.option(
    "--cluster", is_flag=True, help="Look at every node of the Ray that RAY_ADDRESS names, or that runs here."
)
def doctor(file: Path | None, uri: str, cluster: bool) -> None:
    """Look at versions, operators, devices, Ray and the MLflow store; exit code 1 when something is broken.

    With an experiment FILE also whether its trials can begin: their data, parts of your own, processes, memory and
    storage. Nothing is downloaded, and nothing written.

    With --cluster, before a sweep over several nodes: also whether their code is the same, the data and the storage of
    the experiment FILE are there, and how fast the links between them are.
    """
    experiment = None
    with shared.clear_errors():
        if file:
            from lqray.experiment.parts import add_place

            experiment = shared.read(file)
            uri = experiment.tracking.uri or uri
            add_place(file.parent)
        store = shared.absolute(uri)
    if cluster:
        sys.exit(_examine_cluster(experiment, store))
    from lqray.orchestration.doctor.experiment import examine_experiment
    from lqray.orchestration.doctor.local import examine, shown

    broken = False
    with shared.clear_errors():
        for finding in chain(examine(store), examine_experiment(experiment) if experiment else ()):
            broken = broken or finding.state == "broken"
            shared.say(shown(finding))
    sys.exit(broken)


def _examine_cluster(experiment: Experiment | None, store: str) -> int:
    from lqray.experiment.store import StorageError, storage_address
    from lqray.orchestration.doctor.cluster import broken, cluster_table, details, examine_cluster
    from lqray.orchestration.doctor.experiment import trials_of
    from lqray.orchestration.launchers.ray.cluster import ClusterError, running_cluster
    from lqray.orchestration.plan.data import needed_data

    with shared.clear_errors(StorageError, ClusterError):
        folder = storage_address(experiment.storage.folder if experiment else None)
        needed = needed_data(trials_of(experiment)) if experiment else []
        with running_cluster():
            reports = examine_cluster(folder, store, [one.options for one in needed])
    for line in details(reports):
        shared.say(line)
    shared.console().print(cluster_table(reports))
    return int(broken(reports))
