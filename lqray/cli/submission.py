"""lqray submit: `lqray run` as a job on a cluster."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lqray.cli import shared, sweeps

if TYPE_CHECKING:
    from lqray.experiment.grid import Experiment
    from lqray.orchestration.remote.job_head import JobHead
    from lqray.orchestration.remote.package import Package
    from lqray.orchestration.remote.submit import Cluster, Job, Sweep

_SHOWN = 10
_WORTH_A_BAR = 10**6
_SECONDS_BETWEEN_LINES = 10.0


def _options_of_run() -> list[click.Parameter]:
    return [option for option in sweeps.run.params if isinstance(option, click.Option)]


class _SubmitCommand(click.Command):
    """Has the options of `run`, also behind a `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [argument for argument in args if argument != "--"])


@click.command(cls=_SubmitCommand, params=_options_of_run())
@shared.files
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
    run again, for what is missing. Ctrl-C leaves it running. --dry-run shows what would be sent, and sends nothing.

    Exit code: 0 when the job succeeded (or, with --no-wait, was taken), 1 when it failed, was stopped, or ran other
    code than was sent, 2 when something has to be put right first or the cluster cannot be reached any more, 130 when
    left: the job, if it was submitted, goes on.
    """
    experiments, beside = _read(files, options)
    if address and cluster:
        raise click.UsageError("--address and --cluster: only one of them")
    from lqray.orchestration.remote.submit import Sweep

    dry_run = options.pop("dry_run")
    sweep = Sweep(tuple(experiment.name for experiment in experiments), files, _as_arguments(options), beside)
    if dry_run:
        _show(sweep)
        return
    stores = {one.name: one.tracking.uri for one in experiments if one.tracking.uri}
    sys.exit(_submit(sweep, address, cluster, follow, no_wait, stores))


def _read(files: Sequence[Path], options: dict[str, object]) -> tuple[list[Experiment], tuple[Mapping[str, Path], ...]]:
    """The experiments, and what lies beside the file of each: modules of a user's own parts. Leaves with 2 for what
    would fail there, and can be known here."""
    from lqray.experiment.choice import NothingChosenError, chosen
    from lqray.experiment.errors import UnfitTrialError
    from lqray.experiment.part_files import own_files
    from lqray.experiment.parts import add_place
    from lqray.experiment.sampling import corner
    from lqray.orchestration.plan.feasible import check_trials
    from lqray.orchestration.queue.stop_rules import StopRuleError, parse_stop_rule
    from lqray.orchestration.remote.job_checks import UnfitForJobsError, check_lasting, check_secret

    overrides: tuple[str, ...] = options["overrides"]  # type: ignore[assignment]
    only: tuple[str, ...] = options["only"]  # type: ignore[assignment]
    rules: tuple[str, ...] = options["stop_on"]  # type: ignore[assignment]
    with shared.clear_errors(UnfitForJobsError, UnfitTrialError, StopRuleError, NothingChosenError):
        for rule in rules:
            parse_stop_rule(rule)
        experiments = [shared.read(file, overrides) for file in files]
        only = shared.check_chosen(experiments, only)
        beside = []
        for file, experiment in zip(files, experiments, strict=True):
            add_place(file.parent)
            check_lasting(experiment.tracking, experiment.storage, here=False)
            if not experiment.adaptive:
                check_trials(chosen(experiment, only), thorough=False)
            search = experiment.search if experiment.adaptive else None
            trials = [experiment.suggested(corner(search, True))] if search else chosen(experiment, only)
            beside.append(own_files((named.trial for named in trials), file.parent))
        for file, experiment in zip(files, experiments, strict=True):
            check_secret(experiment.document.text, str(file))
        for option, texts in (("--set", overrides), ("--on-end", (str(options["on_end"] or ""),))):
            for text in texts:
                check_secret(text, option)
    return experiments, tuple(beside)


def _show(sweep: Sweep) -> None:
    from lqray.orchestration.remote.submit import shipment
    from lqray.orchestration.remote.working_tree import PackageError

    with shared.clear_errors(PackageError):
        would = shipment(sweep)
    for name in would.package.names:
        shared.say(name)
    shared.say(f"would be sent: {_described(would.package)}; to run: {would.entrypoint}", err=True)
    _say_what_stays(would.package)


def _described(package: Package) -> str:
    """Files, bytes and the largest of them, in words."""
    large = [f"{name} {size / 1e6:.1f} MB" for size, name in package.largest if size >= _WORTH_A_BAR][:3]
    return f"{package.files} files, {package.size / 1e6:.1f} MB" + (f" ({', '.join(large)})" if large else "")


def _say_what_stays(package: Package) -> None:
    """And which lqray will run."""
    tree = package.tree
    if not tree.has_lqray:
        shared.say(f"{tree.around} holds no lqray: the cluster's own runs", err=True)
    elif tree.root != tree.around:
        place = tree.root.relative_to(tree.around)
        shared.say(f"lqray is that of {place} in {tree.around}, and nothing outside of it is sent", err=True)
    if tree.has_lqray and not tree.tells:
        shared.say("its lqray is older than this one, and will not record the commit that it has here", err=True)
    for names, why in (
        (tree.secrets, "since by their names they hold secrets"),
        (tree.results, "which are results of lqray's"),
        (tree.absent, "submodules that are not checked out (git submodule update --init)"),
    ):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            shared.say(f"left out, {len(names)}, {why}: {shown}", err=True)


def _submit(
    sweep: Sweep, address: str | None, config: Path | None, follow: bool, no_wait: bool, stores: dict[str, str]
) -> int:
    from contextlib import closing, nullcontext

    from lqray.orchestration.launchers.ray.access import offer_token
    from lqray.orchestration.launchers.ray.cluster import ClusterError
    from lqray.orchestration.remote.job_head import JobHead
    from lqray.orchestration.remote.job_server import SubmissionError, address_of
    from lqray.orchestration.remote.submit import Cluster
    from lqray.orchestration.remote.tunnel import Tunnel
    from lqray.orchestration.remote.working_tree import PackageError

    offer_token()  # before anything imports Ray, which reads the setting then
    where = ["--cluster", str(config)] if config else ["--address", address_of(address)]
    again = f"{shared.program()} submit {shlex.join([*map(shared.in_command, sweep.files), *sweep.options, *where])}"
    with shared.clear_errors(ClusterError, SubmissionError, PackageError):
        tunnel = Tunnel(config) if config else None
        with closing(tunnel) if tunnel else nullcontext(), _upload_shown() as sent:
            find = tunnel.address if tunnel else lambda: address_of(address)
            cluster = Cluster(find, lambda text: shared.say(text, err=True), sent)
            try:
                job = cluster.submit(sweep)
            except KeyboardInterrupt:
                shared.say("\nInterrupted while it was sent: the same command again submits it, or finds it", err=True)
                return 130
            head = JobHead(job.code, stores)
            _say_submitted(job)

            def goes_on() -> str:
                return _how_to_go_on(again, job.submission_id, sweep, where, head.stores)

            if no_wait:
                shared.say(goes_on(), err=True)
                return 0
            try:
                ended = _followed(cluster, job, head, follow)
            except KeyboardInterrupt:
                shared.say(f"\nDetached. {goes_on()}", err=True)
                return 130
            shared.say(f"{job.submission_id}: {ended}", err=True)
            return 0 if ended == "SUCCEEDED" and not head.other_code else 1


def _followed(cluster: Cluster, job: Job, head: JobHead, follow: bool) -> str:
    """Show the job's log, and say where what runs is not what was sent; returns how it ended."""

    def show(text: str) -> None:
        for remark in head.heard(text):
            shared.say(remark, err=True)
        shared.say(text, nl=False)

    ended = cluster.outcome(job.submission_id, show if follow else None)
    if follow and (remark := head.not_said(ended)):
        shared.say(remark, err=True)
    return ended


def _say_submitted(job: Job) -> None:
    if job.package is None:
        shared.say(f"{job.submission_id} runs already, with the files it was submitted with", err=True)
    else:
        shared.say(f"{job.submission_id}: submitted, {_described(job.package)}", err=True)
        _say_what_stays(job.package)


@contextmanager
def _upload_shown() -> Iterator[Callable[[int, int], None]]:
    """Yields what is told how an upload gets on: a bar in a terminal, elsewhere a line now and then."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

    from lqray.experiment.foreign import plain_console

    bar = Progress(
        *("sending", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
        console=plain_console(stderr=True),
        transient=True,
    )
    task: list[TaskID] = []
    said = time.monotonic()

    def told(sent: int, size: int) -> None:
        nonlocal said
        if size < _WORTH_A_BAR:
            return
        if sys.stderr.isatty():
            if not task:
                bar.start()
                task.append(bar.add_task("", total=size))
            bar.update(task[0], completed=sent)
            if sent >= size:
                bar.stop()
        elif time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            shared.say(f"sent {sent / 1e6:.1f} of {size / 1e6:.1f} MB", err=True)

    try:
        yield told
    finally:
        bar.stop()


def _how_to_go_on(again: str, submission_id: str, sweep: Sweep, where: list[str], stores: dict[str, str]) -> str:
    from lqray.experiment.secrets import masked

    option, value = where
    stop = f"RAY_AUTH_MODE=token ray job stop --address {value} {submission_id}"
    if option == "--cluster":
        stop = shlex.join(["ray", "exec", value, f"RAY_AUTH_MODE=token ray job stop {submission_id}"])
    commands = [
        f"{shared.program()} stop {shlex.quote(name)}"
        + (f" --uri {shlex.quote(masked(stores[name]))}" if name in stores else "")
        for name in sweep.names
    ]
    all_known = stores.keys() >= set(sweep.names)
    known = "" if all_known else "\n               (with --uri, and the store that the job's log says it records in)"
    return (
        f"{submission_id} goes on without you.\n  follow it:   {again}\n"
        f"  stop trials: {'; '.join(commands)}{known}\n"
        f"  stop it:     {stop}"
    )


def _as_arguments(values: dict[str, object]) -> tuple[str, ...]:
    """Options of `run` as on its command line, as far as they are not the default."""
    arguments: list[str] = []
    for option in _options_of_run():
        value = values.get(option.name or "")
        if value == option.get_default(click.get_current_context()) or value in ((), None, False):
            continue
        if value is True:
            arguments.append(option.opts[0])
        else:
            for one in value if isinstance(value, tuple) else (value,):
                arguments += [option.opts[0], str(one)]
    return tuple(arguments)
