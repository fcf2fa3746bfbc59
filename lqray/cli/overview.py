"""Commands that look at running sweeps and steer them: status, stop, logs, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import click

from lqray.cli import shared


@click.command()
@click.argument("experiment", required=False)
@shared.uri
@click.option("--follow/--once", default=None, help="Keep the table current; by default on a terminal.")
def status(experiment: str | None, uri: str, follow: bool | None) -> None:
    """Show how the trials of EXPERIMENT, a name or a file, stand; without it, of all experiments."""
    import time

    from rich.live import Live

    from lqray.cli.status_table import status_table
    from lqray.orchestration.recording.overview import recorded_trials
    from lqray.store.experiments import UnknownExperimentError, sweeps_of

    with shared.clear_errors(UnknownExperimentError):
        name, store = shared.store_of(experiment, uri) if experiment else (None, shared.absolute(uri))
        if name:
            recorded_trials(store, name)
        names = [name] if name else sweeps_of(store)
        console = shared.console()
        if not (console.is_terminal if follow is None else follow):
            console.print(status_table(store, names))
            return
        try:
            with Live(status_table(store, names), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(2)
                    live.update(status_table(store, names), refresh=True)
        except KeyboardInterrupt:
            return


@click.command()
@click.argument("experiment")
@click.option("--only", default="*", metavar="PATTERN", help="Only trials of such names (shell pattern) or this id.")
@shared.uri
def stop(experiment: str, only: str, uri: str) -> None:
    """Ask the launches of EXPERIMENT, a name or a file, to stop its trials after a checkpoint, and to begin no others.

    `lqray run` continues them.
    """
    from lqray.orchestration.queue.control import ask_to_stop
    from lqray.store.experiments import UnknownExperimentError, experiment_id
    from lqray.store.runs import recorded_names

    with shared.clear_errors(UnknownExperimentError):
        name, store = shared.store_of(experiment, uri)
        number = experiment_id(store, name)
        for pattern in _of_now(only, recorded_names(store, name)):
            ask_to_stop(store, number, pattern)
    shown = f"{shared.program()} status {shared.named(name, store, Path(experiment))}"
    shared.say(f"Asked: trials of {name} that match {only!r} stop within seconds; `{shown}` shows it.")


def _of_now(pattern: str, recorded: Mapping[str, Sequence[str]]) -> list[str]:
    """The pattern; where it fits former names of trials alone, their ids. recorded: by id, the present name first."""
    once = [one for one, names in recorded.items() if any(fnmatchcase(name, pattern) for name in names[1:])]
    return [pattern] if not once or any(fnmatchcase(names[0], pattern) for names in recorded.values()) else once


@click.command()
@click.argument("trial")
@click.option("--experiment", help="Its experiment, where trials of several have this name.")
@click.option("--rank", type=int, help="Only this rank's.")
@shared.uri
def logs(trial: str, experiment: str | None, rank: int | None, uri: str) -> None:
    """Print what the processes of TRIAL, a name or an id, wrote."""
    from lqray.experiment.foreign import in_line
    from lqray.experiment.store import StorageError
    from lqray.orchestration.recording.overview import logs_of
    from lqray.reporting.finding import find_run
    from lqray.store.experiments import UnknownExperimentError
    from lqray.store.runs import UnknownRunError

    with shared.clear_errors(UnknownRunError, UnknownExperimentError, StorageError):
        given = shared.recorded([experiment], uri)[0] if experiment else None
        store = given.uri if given else shared.absolute(uri)
        for of_rank, address, text in logs_of(find_run(store, trial, given)):
            if rank is None or of_rank == rank:
                shared.say(f"==> {in_line(address)} <==")
                shared.say(text)


@click.command()
@click.argument("experiment")
@shared.uri
def failures(experiment: str, uri: str) -> None:
    """Show the failed trials of EXPERIMENT, a name or a file, by cause, and whether a retry makes sense."""
    from lqray.experiment.foreign import in_line
    from lqray.orchestration.recording.overview import advice, failed_trials
    from lqray.store.experiments import UnknownExperimentError

    with shared.clear_errors(UnknownExperimentError):
        name, store = shared.store_of(experiment, uri)
        kind = None
        for failed in failed_trials(store, name):
            if failed.kind != kind:
                kind = failed.kind
                click.secho(f"{kind}: {advice(kind)}", bold=True)
            headline = in_line(f"{failed.name} ({failed.where}): {failed.error}")
            shared.say(f"\n{headline}\n{failed.traceback.strip()}\n")
        if kind is None:
            shared.say(f"No failed trials in {name}.")
