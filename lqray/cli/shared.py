"""Arguments, options and errors that commands share."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from lqray.experiment.grid import Experiment
    from lqray.reporting.links import Link
    from lqray.reporting.planned import Recorded

_FILES = (".yaml", ".yml")
"""An experiment that is called so is a file."""

file = click.argument("file", type=click.Path(path_type=Path))
files = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))

experiments = click.argument("experiments", metavar="EXPERIMENT...", nargs=-1, required=True)
only = click.option("--only", multiple=True, metavar="PATTERN", help="Only trials of such names (shell pattern).")
everything = click.option(
    "--all", "everything", is_flag=True, help="Also runs that are not of the experiment's file as it stands."
)
where = click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only runs with this parameter.")

uri = click.option(
    "--uri",
    default="sqlite:///lqray.db",
    envvar="MLFLOW_TRACKING_URI",
    show_default=True,
    show_envvar=True,
    help="Where the runs are recorded.",
)


def read_links(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[Link, ...]:
    """Of `--link`; none without it."""
    from lqray.reporting.links import LinkError, parsed_links

    try:
        return parsed_links(text) if text is not None else ()
    except LinkError as error:
        raise click.BadParameter(str(error)) from None


def read_workers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Of `--workers`; None without it."""
    from lqray.reporting.links import LinkError, parsed_workers

    try:
        return parsed_workers(text) if text is not None else None
    except LinkError as error:
        raise click.BadParameter(str(error)) from None


def read_number(_context: click.Context, _parameter: click.Parameter, number: float | None) -> float | None:
    """Of an option that has a range, in which click finds NaN, too."""
    if number is not None and math.isnan(number):
        raise click.BadParameter("nan is not a number that can be meant")
    return number


def read(file: Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """An experiment file with `--set`'s values in it. Raises ExperimentError."""
    from lqray.experiment.grid import read_experiment

    return read_experiment(file, overrides)


def store_of(experiment: str, uri: str | None) -> tuple[str, str]:
    """(name, absolute store) of an experiment given by name, by its file, which names its own store, or by the folder
    that it was exported to."""
    if experiment.endswith(_FILES):
        found = read(Path(experiment))
        return found.name, absolute(found.tracking.uri or uri)
    from lqray.reporting.exported import experiment_of, export_folder

    folder = export_folder(experiment)
    if folder and "/" not in experiment and _is_recorded(experiment, absolute(uri)):
        say(f"{experiment} is the experiment of the store; the folder of this name is ./{experiment}", err=True)
        folder = None
    return (experiment_of(folder)[0], str(folder.resolve())) if folder else (experiment, absolute(uri))


def _is_recorded(name: str, uri: str) -> bool:
    """Whether the store has an experiment of this name."""
    from lqray.store.errors import NoStoreError
    from lqray.store.experiments import active_experiments

    try:
        return name in active_experiments(uri)
    except NoStoreError:
        return False


def recorded(experiments: Sequence[str], uri: str | None) -> list[Recorded]:
    """Experiments given by name or by file, and where they are recorded."""
    from lqray.reporting.planned import Recorded

    found = []
    for one in experiments:
        name, store = store_of(one, uri)
        found.append(Recorded(name, store, read(Path(one)) if one.endswith(_FILES) else None))
    return found


def check_chosen(experiments: Sequence[Experiment], only: Sequence[str]) -> tuple[str, ...]:
    """Patterns of `--only`, which fit trials of the files; see `lqray.experiment.choice`. Names that trials were once
    recorded under are looked for where a pattern fits no other. Raises NothingChosenError, StoreError."""
    from lqray.experiment.choice import check_chosen
    from lqray.store.runs import recorded_names

    return check_chosen(experiments, only, lambda one: recorded_names(absolute(one.tracking.uri), one.name))


def absolute(uri: str | None) -> str:
    """A store's address that means the same in every directory."""
    from lqray.experiment.store import absolute_store

    return absolute_store(uri)


def program() -> str:
    """How this lqray was called, to begin a command that is printed; see `lqray.orchestration.invocation`."""
    from lqray.orchestration.invocation import program

    return program()


def named(experiment: str, uri: str, file: Path | None = None) -> str:
    """An experiment that is recorded at `uri`, absolute, as an argument of a command that is printed, which finds it in
    that store; in a job it will be called elsewhere. file: it says itself where it is recorded, and stands for a name
    whose --uri would need a password, which is not printed."""
    from lqray.experiment.secrets import masked
    from lqray.experiment.store import as_argument
    from lqray.orchestration.submitted import runs_in_a_job

    if runs_in_a_job():
        return f"{shlex.quote(experiment)} --uri {shlex.quote(masked(uri))}"
    argument = as_argument(experiment, uri)
    if masked(uri) != uri and argument != shlex.quote(experiment) and file and file.suffix in _FILES:
        return shlex.quote(in_command(file))
    return argument


def in_command(file: Path) -> str:
    """A file as an argument, which is no option."""
    return f"./{file}" if str(file).startswith("-") else str(file)


def console() -> Console:
    """The terminal; where there is none, lines wide enough for whole tables."""
    from lqray.experiment.foreign import plain_console

    return plain_console() if sys.stdout.isatty() else plain_console(width=160)


def say(text: object, err: bool = False, nl: bool = True) -> None:
    """Print lines to standard output or error, of which any part may be text that somebody else wrote."""
    from lqray.experiment.foreign import in_lines

    click.echo(in_lines(text), err=err, nl=nl)


@contextmanager
def clear_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Print errors that are the user's to mend without a traceback, and exit with 2: those kinds, what is wrong with an
    experiment, a store or the network, and a file that cannot be read or written."""
    from lqray.experiment.errors import ExperimentError
    from lqray.experiment.secrets import masked
    from lqray.experiment.store import StorageError

    expected: tuple[type[Exception], ...] = (ExperimentError, StorageError, ConnectionError, *kinds)
    try:
        yield
    except Exception as error:
        of_a_file = isinstance(error, OSError) and error.filename is not None
        of_the_store = is_of_the_store(error)
        if not of_the_store and not of_a_file and not isinstance(error, expected):
            raise
        said = said_of_the_store(error) if of_the_store else str(error)
        if of_a_file and type(error).__module__ == "builtins":
            said = f"{error.filename}: {error.strerror}"  # type: ignore[attr-defined]
        say(f"Error: {masked(said)}", err=True)
        sys.exit(2)


def is_of_the_store(error: Exception) -> bool:
    """Whether it is one of the store's packages, which need not be imported to be told by: a server that is away,
    tables that are not its own."""
    return type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "requests", "urllib3")


def said_of_the_store(error: Exception) -> str:
    """In the user's words."""
    from lqray.store.outage import explained

    return f"the MLflow store: {explained(error)}"
