"""The `lqray` command: arguments and wiring, nothing else. Commands import the heavy packages that they need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from lqray.experiment.grid import Experiment

_file = click.argument("file", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="lqray")
def main() -> None:
    """Learning to quantize: sweeps of data-parallel training whose gradients travel in a few bits."""


@main.command()
@_file
@click.option("--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True)
def expand(file: Path, shape: str) -> None:
    """Show the trials that FILE describes; runs nothing."""
    with _clear_errors():
        experiment = _read(file)
        if shape == "json":
            _print_json(experiment)
        else:
            _print_trials(experiment)


@main.command()
@_file
@click.option(
    "--launcher",
    type=click.Choice(["ray", "inline"]),
    default="ray",
    show_default=True,
    help="ray: Ray Tune and Train, on the cluster of RAY_ADDRESS, one running here, or one of its own. "
    "inline: one trial after the other on this machine, without Ray.",
)
@click.option("--verbose", is_flag=True, help="Also show Ray's log lines.")
def run(file: Path, launcher: str, verbose: bool) -> None:
    """Run the trials of FILE, record each in MLflow, and print how they compare."""
    with _clear_errors():
        experiment = _read(file)
        trials = list(experiment.trials())
    from lqray.experiment.store import absolute_store
    from lqray.orchestration.cluster import ClusterError
    from lqray.orchestration.inline import InlineLauncher
    from lqray.orchestration.launcher import Launcher, LaunchInterrupted, TrialResult
    from lqray.orchestration.placement import PlacementError
    from lqray.orchestration.progress import Progress
    from lqray.orchestration.provenance import provenance
    from lqray.orchestration.sweep import RayLauncher
    from lqray.orchestration.tracking import describe_experiment, open_launch
    from lqray.reporting.records import read_records
    from lqray.reporting.tables import sweep_summary, terminal_table

    console = _console()
    uri = absolute_store(experiment.tracking.uri)
    tags = provenance()
    launch = open_launch(uri, experiment.name, str(file), file.read_text(encoding="utf-8"), tags)
    console.print(f"[bold]{experiment.name}[/]: {len(trials)} trials, recorded in {uri}", highlight=False)
    results: list[TrialResult] = []
    interrupted = False
    with Progress(console, len(trials)) as progress, _clear_errors(PlacementError, ClusterError):
        chosen: Launcher = (
            InlineLauncher(launch, experiment.resources, progress)
            if launcher == "inline"
            else RayLauncher(launch, experiment.resources, progress, verbose)
        )
        try:
            chosen.launch(trials, results.append)
        except LaunchInterrupted:
            interrupted = True
    records = read_records(uri, experiment.name, launch.launch_id)
    describe_experiment(launch, sweep_summary(experiment.name, records, experiment.axes, tags["lqray.command"]))
    console.print(terminal_table(records))
    for result in results:
        if result.error:
            click.echo(f"\n{result.named.name} failed:\n{result.error.strip()}", err=True)
    click.echo(f"Compare them in the MLflow UI:  {sys.argv[0]} ui {file}")
    if interrupted:
        click.echo(
            "Interrupted: trials that were running are recorded as KILLED; "
            f"{len(trials) - len(results)} were not started.",
            err=True,
        )
        sys.exit(130)
    sys.exit(any(result.status == "FAILED" for result in results))


@main.command()
@_file
@click.option("--trial", "chosen", metavar="NAME_OR_ID", help="Which trial of FILE; needed unless there is only one.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    help="Folder to write to, and to continue from.",
)
@click.option("--checkpoint-every", type=click.IntRange(1), default=1000, show_default=True, help="In iterations.")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, help="Checkpoints kept, beside the best.")
@click.option("--metrics", type=click.Path(path_type=Path), help="Append every report to this file, as lines of JSON.")
@click.option("--profile", type=click.Path(path_type=Path), help="Folder for torch profiler traces of five steps.")
def train(
    file: Path,
    chosen: str | None,
    checkpoints: Path | None,
    checkpoint_every: int,
    keep: int,
    metrics: Path | None,
    profile: Path | None,
) -> None:
    """Train one trial of FILE without Ray and MLflow: to debug and to profile.

    Alone, or in several processes: torchrun --nproc-per-node 2 -m lqray train FILE --trial NAME. Folders of checkpoints
    must be seen by all of them.
    """
    from lqray.experiment.errors import UnknownTrialError

    with _clear_errors(UnknownTrialError):
        experiment = _read(file)
        named = experiment.find(chosen)
    from lqray.training.checkpoint import CheckpointError, Checkpoints
    from lqray.training.files import CorruptDataError, MissingDataError
    from lqray.training.nonfinite import DivergedError
    from lqray.training.standalone import run_standalone

    folder = Checkpoints(checkpoints, checkpoint_every, keep) if checkpoints else None
    with _clear_errors(CheckpointError, DivergedError, MissingDataError, CorruptDataError):
        run_standalone(named.trial, experiment.resources, click.echo, folder, metrics, profile)


@main.command()
@click.argument("experiment")
@click.option("--uri", default="sqlite:///lqray.db", show_default=True, help="Where the runs are recorded.")
def report(experiment: str, uri: str) -> None:
    """Print how the recorded runs of EXPERIMENT, a name or an experiment file, compare."""
    from lqray.reporting.records import UnknownExperimentError, read_records
    from lqray.reporting.tables import terminal_table

    with _clear_errors(UnknownExperimentError):
        name, store = _store_of(experiment, uri)
        _console().print(terminal_table(read_records(store, name)))


@main.command()
@click.argument("experiment", required=False)
@click.option("--uri", default="sqlite:///lqray.db", show_default=True, help="Where the runs are recorded.")
@click.option("--port", type=int, default=5000, show_default=True, help="The first free port from here on is taken.")
@click.option("--browser/--no-browser", default=None, help="Open a browser; by default only where there is a display.")
def ui(experiment: str | None, uri: str, port: int, browser: bool | None) -> None:
    """Open the MLflow UI; with EXPERIMENT, a name or an experiment file, at that experiment's charts."""
    from lqray.reporting.records import UnknownExperimentError
    from lqray.reporting.ui import serve_ui

    with _clear_errors(UnknownExperimentError):
        name, store = _store_of(experiment, uri) if experiment else (None, _absolute(uri))
        sys.exit(serve_ui(store, name, port, browser))


@main.command()
@click.option("--uri", default="sqlite:///lqray.db", show_default=True, help="The MLflow store to look at.")
def doctor(uri: str) -> None:
    """Look at versions, operators, devices, Ray and the MLflow store; exit code 1 when something is broken."""
    from lqray.orchestration.doctor import examine

    marks = {"ok": "ok    ", "slow": "slow  ", "broken": "BROKEN"}
    broken = False
    for finding in examine(_absolute(uri)):
        broken = broken or finding.state == "broken"
        click.echo(f"{marks[finding.state]}  {finding.what:18}  {finding.found}")
        if finding.remedy:
            click.echo(f"{'':28}remedy: {finding.remedy}")
    sys.exit(broken)


def _read(file: Path) -> Experiment:
    from lqray.experiment.grid import read_experiment

    return read_experiment(file)


def _store_of(experiment: str, uri: str) -> tuple[str, str]:
    """(name, absolute store) of an experiment given by name, or by its file, which names its own store."""
    if experiment.endswith((".yaml", ".yml")):
        read = _read(Path(experiment))
        return read.name, _absolute(read.tracking.uri)
    return experiment, _absolute(uri)


def _absolute(uri: str) -> str:
    from lqray.experiment.store import absolute_store

    return absolute_store(uri)


def _console() -> Console:
    """The terminal; where there is none, lines wide enough for whole tables."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


@contextmanager
def _clear_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Print errors that are the user's to mend without a traceback, and exit with 2."""
    from lqray.experiment.errors import ExperimentError

    expected: tuple[type[Exception], ...] = (ExperimentError, *kinds)
    try:
        yield
    except expected as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _print_json(experiment: Experiment) -> None:
    import json

    separator = "["
    for named in experiment.trials():
        item = {"id": named.trial.id, "name": named.name, "config": named.trial.config()}
        click.echo(separator + "\n  " + json.dumps(item), nl=False)
        separator = ","
    click.echo("\n]")


def _print_trials(experiment: Experiment) -> None:
    from rich.table import Table

    console = _console()
    combinations = sum(1 for _ in experiment.combinations())
    table = Table(header_style="bold")
    for title in ("id", "name", *experiment.axes):
        table.add_column(title, no_wrap=title in ("id", "name"))
    count = 0
    for named in experiment.trials():
        flat = named.trial.flat()
        table.add_row(named.trial.id, named.name, *(str(flat.get(axis, "-")) for axis in experiment.axes))
        count += 1
    console.print(table)
    same = combinations - count
    note = f"; {same} combinations are the same trial as another one and run once" if same else ""
    console.print(f"{experiment.name}: {count} trials{note}", highlight=False)
