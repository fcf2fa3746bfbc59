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
    from lqray.orchestration.run import LauncherName, Plan, RunOptions
    from lqray.orchestration.submission import Sweep

_file = click.argument("file", type=click.Path(path_type=Path))
_files = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))

_uri = click.option(
    "--uri",
    default="sqlite:///lqray.db",
    envvar="MLFLOW_TRACKING_URI",
    show_default=True,
    show_envvar=True,
    help="Where the runs are recorded.",
)


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
@_files
@click.option(
    "--launcher",
    type=click.Choice(["auto", "isolated", "warm", "inline"]),
    default="auto",
    show_default=True,
    help="isolated: on Ray, worker processes of its own for each trial. warm: on Ray, processes run one trial after "
    "the other. inline: one trial after the other on this machine, without Ray. auto: warm for trials expected under a "
    "minute, else isolated.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only trials of such names (shell pattern) or this id.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of every trial, or a resource.")
@click.option("--limit", type=click.IntRange(1), help="Run at most so many trials.")
@click.option("--rerun", is_flag=True, help="A new attempt at every trial, also at finished ones.")
@click.option("--dry-run", is_flag=True, help="Show what would run, what is done and what it would cost; run nothing.")
@click.option("--max-failures", type=click.IntRange(1), help="Begin no further trial after so many failed.")
@click.option(
    "--stop-on", multiple=True, metavar="RULE", help="Stop a trial early: NaN, or for example accuracy<0.2@1000."
)
@click.option("--verbose", is_flag=True, help="Also show Ray's log lines.")
def run(
    files: tuple[Path, ...],
    launcher: LauncherName,
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    limit: int | None,
    rerun: bool,
    dry_run: bool,
    max_failures: int | None,
    stop_on: tuple[str, ...],
    verbose: bool,
) -> None:
    """Run the trials of each FILE that are not finished yet, record them in MLflow, and print how they compare.

    Running again resumes, retries and adds what is missing: interrupted and failed trials continue from their
    checkpoints.
    """
    from lqray.orchestration.stop_rules import StopRuleError, parse_stop_rule

    with _clear_errors(StopRuleError):
        rules = tuple(parse_stop_rule(text) for text in stop_on)
        experiments = [_read(file, overrides) for file in files]
    from lqray.orchestration.run import RunOptions

    options = RunOptions(launcher, only, limit, rerun, max_failures, rules, verbose, whole=not overrides)
    codes = [_run_one(experiment, file, options, dry_run) for file, experiment in zip(files, experiments, strict=True)]
    sys.exit(max(codes))


def _run_one(experiment: Experiment, file: Path, options: RunOptions, dry_run: bool) -> int:
    """Run one experiment; returns the exit code. Leaves with 130 when interrupted."""
    from lqray.orchestration.cluster import ClusterError
    from lqray.orchestration.lasting import UnfitForJobsError, check_lasting, runs_in_a_job
    from lqray.orchestration.placement import PlacementError
    from lqray.orchestration.progress import Progress
    from lqray.orchestration.run import make_plan, run_plan
    from lqray.orchestration.store_access import StoreAwayError
    from lqray.orchestration.tracking import describe_experiment
    from lqray.reporting.records import latest_attempts, read_records
    from lqray.reporting.tables import sweep_summary, terminal_table

    console = _console()
    with _clear_errors(PlacementError, ClusterError, StoreAwayError, UnfitForJobsError):
        if runs_in_a_job():
            check_lasting(experiment.tracking, experiment.storage, here=True)
        plan = make_plan(experiment, options)
        if dry_run:
            from lqray.orchestration.dry_run import show_plan

            show_plan(console, plan, experiment)
            return 0
        _say_plan(console, experiment.name, plan)
        with Progress(console, len(plan.due) + plan.more) as progress:
            ran = run_plan(experiment, file.read_text(encoding="utf-8"), plan, options, progress)
    ids = {one.named.trial.id for one in plan.trials} | {result.named.trial.id for result in ran.results}
    records = [one for one in latest_attempts(read_records(plan.uri, experiment.name)) if one.trial_id in ids]
    command = ran.launch.tags["lqray.command"]
    describe_experiment(ran.launch, sweep_summary(experiment.name, records, experiment.axes, command))
    console.print(terminal_table(records))
    for result in ran.results:
        if result.failure:
            text = result.failure.traceback.strip()
            click.echo(f"\n{result.named.name} failed ({result.failure.kind}):\n{text}", err=True)
    for trial_id, holder in ran.elsewhere.items():
        where = f"{holder.host}, process {holder.pid}" if holder else "another launch"
        name = next(one.named.name for one in plan.trials if one.named.trial.id == trial_id)
        click.echo(f"{name}: left to {where}, which runs it", err=True)
    view = f"lqray ui {experiment.name}" if runs_in_a_job() else f"{sys.argv[0]} ui {file}"
    click.echo(f"Compare them in the MLflow UI:  {view}")
    if ran.interrupted:
        click.echo(
            "Interrupted: trials that were running are recorded as KILLED; run the same command again to continue "
            f"({len(plan.due) - len(ran.results)} were not started).",
            err=True,
        )
        sys.exit(130)
    return int(any(result.status == "FAILED" for result in ran.results))


def _say_plan(console: Console, name: str, plan: Plan) -> None:
    counts: dict[str, int] = {}
    for one in plan.trials:
        counts[one.what] = counts.get(one.what, 0) + 1
    words = {
        "run": "to run",
        "continue": "to continue",
        "retry": "to retry",
        "rerun": "to run again",
        "done": "finished before",
        "early": "stopped early before",
    }
    parts = ", ".join(f"{counts[what]} {word}" for what, word in words.items() if what in counts) or "no trials"
    parts += f", {plan.more} to be suggested" if plan.more else ""
    limited = f"; now {len(plan.due)} of them" if plan.limit and len(plan.due) == plan.limit else ""
    console.print(f"[bold]{name}[/]: {parts}{limited}, recorded in {plan.uri}", highlight=False)


def _options_of_run() -> list[click.Parameter]:
    return [option for option in run.params if isinstance(option, click.Option)]


class _SubmitCommand(click.Command):
    """Has the options of `run`, also behind a `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [argument for argument in args if argument != "--"])


@main.command(cls=_SubmitCommand, params=_options_of_run())
@_files
@click.option("--address", metavar="URL", help="Of the cluster's dashboard; by default http://127.0.0.1:8265.")
@click.option(
    "--cluster",
    type=click.Path(path_type=Path),
    help="A file of Ray's cluster launcher: reach its head's dashboard through an SSH tunnel.",
)
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show the job's log.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the job is submitted.")
def submit(
    files: tuple[Path, ...], address: str | None, cluster: Path | None, follow: bool, no_wait: bool, **options: object
) -> None:
    """Run FILE... on a cluster, as a Ray job: `lqray run`, with its options, in a copy of this working tree.

    The same files and options are the same job: submitted again while it runs, it is followed; after its end it is
    run again, for what is missing. Ctrl-C leaves it running. Exit code: 0 when the job succeeded, 1 when it failed or
    was stopped, 130 when left running.
    """
    from lqray.orchestration.lasting import UnfitForJobsError, check_lasting, check_secret

    with _clear_errors(UnfitForJobsError):
        if address and cluster:
            raise click.UsageError("--address and --cluster: only one of them")
        overrides: tuple[str, ...] = options["overrides"]  # type: ignore[assignment]
        experiments = [_read(file, overrides) for file in files]
        for experiment in experiments:
            check_lasting(experiment.tracking, experiment.storage, here=False)
        for file in files:
            check_secret(file.read_text(encoding="utf-8"), str(file))
        for override in overrides:
            check_secret(override, "--set")
    from lqray.orchestration.submission import Sweep

    sweep = Sweep(tuple(experiment.name for experiment in experiments), files, _as_arguments(options))
    sys.exit(_submit(sweep, address, cluster, follow, no_wait))


def _submit(sweep: Sweep, address: str | None, config: Path | None, follow: bool, no_wait: bool) -> int:
    from contextlib import closing, nullcontext

    from lqray.orchestration.cluster import ClusterError
    from lqray.orchestration.package import PackageError
    from lqray.orchestration.submission import Cluster, SubmissionError, job_server
    from lqray.orchestration.tunnel import Tunnel

    where = f"--cluster {config}" if config else f"--address {job_server(address)}"
    with _clear_errors(ClusterError, SubmissionError, PackageError):
        tunnel = Tunnel(config) if config else None
        with closing(tunnel) if tunnel else nullcontext():
            cluster = Cluster(
                tunnel.address if tunnel else lambda: job_server(address), lambda text: click.echo(text, err=True)
            )
            job = cluster.submit(sweep)
            again = f"lqray submit {' '.join(map(str, sweep.files))} {' '.join([*sweep.options, where])}"
            if job.attached:
                click.echo(f"{job.submission_id} runs already, with the files it was submitted with", err=True)
            else:
                click.echo(f"{job.submission_id}: submitted, {job.files} files, {job.size / 1e6:.1f} MB", err=True)
            if no_wait:
                click.echo(_how_to_go_on(again, job.submission_id, sweep), err=True)
                return 0
            try:
                ended = cluster.outcome(
                    job.submission_id, (lambda text: click.echo(text, nl=False)) if follow else None
                )
            except KeyboardInterrupt:
                click.echo(f"\nDetached. {_how_to_go_on(again, job.submission_id, sweep)}", err=True)
                return 130
            click.echo(f"{job.submission_id}: {ended}", err=True)
            return 0 if ended == "SUCCEEDED" else 1


def _show_log(text: str) -> None:
    click.echo(text, nl=False)


def _how_to_go_on(again: str, submission_id: str, sweep: Sweep) -> str:
    return (
        f"{submission_id} goes on without you.\n  follow it:   {again}\n"
        f"  stop trials: {'; '.join(f'lqray stop {name} --uri ...' for name in sweep.names)}\n"
        f"  stop it:     ray job stop {submission_id}"
    )


def _as_arguments(values: dict[str, object]) -> tuple[str, ...]:
    """Options of `run` as on its command line, as far as they are not the default."""
    arguments: list[str] = []
    for option in _options_of_run():
        value = values[option.name or ""]
        if value == option.get_default(click.get_current_context()) or value in ((), None, False):
            continue
        if value is True:
            arguments.append(option.opts[0])
        else:
            for one in value if isinstance(value, tuple) else (value,):
                arguments += [option.opts[0], str(one)]
    return tuple(arguments)


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
@click.argument("experiment", required=False)
@_uri
@click.option("--follow/--once", default=None, help="Keep the table current; by default on a terminal.")
def status(experiment: str | None, uri: str, follow: bool | None) -> None:
    """Show how the trials of EXPERIMENT, a name or a file, stand; without it, of all experiments."""
    import time

    from rich.live import Live

    from lqray.orchestration.overview import UnknownRunError, known_experiments, states_or_error, status_table

    with _clear_errors(UnknownRunError):
        name, store = _store_of(experiment, uri) if experiment else (None, _absolute(uri))
        if name:
            states_or_error(store, name)
        names = [name] if name else known_experiments(store)
        console = _console()
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


@main.command()
@click.argument("experiment")
@click.option("--only", default="*", metavar="PATTERN", help="Only trials of such names (shell pattern) or this id.")
@_uri
def stop(experiment: str, only: str, uri: str) -> None:
    """Ask the launches of EXPERIMENT, a name or a file, to stop its trials after a checkpoint, and to begin no others.

    `lqray run` continues them.
    """
    from lqray.orchestration.control import ask_to_stop
    from lqray.reporting.records import UnknownExperimentError, experiment_id

    with _clear_errors(UnknownExperimentError):
        name, store = _store_of(experiment, uri)
        ask_to_stop(store, experiment_id(store, name), only)
    click.echo(
        f"Asked: trials of {name} that match {only!r} stop within seconds; `lqray status {experiment}` shows it."
    )


@main.command()
@click.argument("trial")
@click.option("--experiment", help="Its experiment, where trials of several have this name.")
@click.option("--rank", type=int, help="Only this rank's.")
@_uri
def logs(trial: str, experiment: str | None, rank: int | None, uri: str) -> None:
    """Print what the processes of TRIAL, a name or an id, wrote."""
    from lqray.orchestration.overview import UnknownRunError, find_trial, log_files

    with _clear_errors(UnknownRunError):
        name, store = _store_of(experiment, uri) if experiment else (None, _absolute(uri))
        for file in log_files(find_trial(store, trial, name)):
            if rank is None or file.stem == f"rank-{rank}":
                click.echo(f"==> {file} <==")
                click.echo(file.read_text(encoding="utf-8", errors="replace"))


@main.command()
@click.argument("experiment")
@_uri
def failures(experiment: str, uri: str) -> None:
    """Show the failed trials of EXPERIMENT, a name or a file, by cause, and whether a retry makes sense."""
    from lqray.orchestration.overview import UnknownRunError, advice, failed_trials

    with _clear_errors(UnknownRunError):
        name, store = _store_of(experiment, uri)
        kind = None
        for failed in failed_trials(store, name):
            if failed.kind != kind:
                kind = failed.kind
                click.secho(f"{kind}: {advice(kind)}", bold=True)
            click.echo(f"\n{failed.name} ({failed.where}): {failed.error}\n{failed.traceback.strip()}\n")
        if kind is None:
            click.echo(f"No failed trials in {name}.")


@main.command()
@click.argument("experiment")
@_uri
def report(experiment: str, uri: str) -> None:
    """Print how the recorded runs of EXPERIMENT, a name or an experiment file, compare."""
    from lqray.reporting.records import UnknownExperimentError, read_records
    from lqray.reporting.tables import terminal_table

    with _clear_errors(UnknownExperimentError):
        name, store = _store_of(experiment, uri)
        _console().print(terminal_table(read_records(store, name)))


@main.command()
@click.argument("experiment", required=False)
@_uri
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
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option(
    "--allowed-hosts",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    metavar="NAME:PORT,...",
    help="What clients may call the server; by default, with another --host, this machine's names and addresses.",
)
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Processes that answer.")
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
    workers: int,
    basic_auth: bool,
) -> None:
    """Start an MLflow server that several machines can record to."""
    from lqray.reporting.server import ServerError, ServerOptions, serve_team

    here = Path.cwd()
    artifacts = artifacts_destination if "://" in artifacts_destination else str(here / artifacts_destination)
    with _clear_errors(ServerError):
        options = ServerOptions(
            _absolute(backend_store_uri), artifacts, host, port, allowed_hosts, workers, basic_auth, here
        )
        sys.exit(serve_team(options))


@main.command()
@_uri
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


def _read(file: Path, overrides: tuple[str, ...] = ()) -> Experiment:
    from lqray.experiment.grid import read_experiment

    return read_experiment(file, overrides)


def _store_of(experiment: str, uri: str) -> tuple[str, str]:
    """(name, absolute store) of an experiment given by name, or by its file, which names its own store."""
    if experiment.endswith((".yaml", ".yml")):
        read = _read(Path(experiment))
        return read.name, _absolute(read.tracking.uri)
    return experiment, _absolute(uri)


def _absolute(uri: str | None) -> str:
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
