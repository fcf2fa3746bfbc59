"""lqray submit: `lqray run` as a job on a cluster."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lqray.cli import shared, sweeps

if TYPE_CHECKING:
    from lqray.orchestration.submission import Sweep

_SHOWN = 10


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
    Exit code: 0 when the job succeeded, 1 when it failed or was stopped, 130 when left running.
    """
    from lqray.orchestration.lasting import UnfitForJobsError, check_lasting, check_secret

    with shared.clear_errors(UnfitForJobsError):
        if address and cluster:
            raise click.UsageError("--address and --cluster: only one of them")
        overrides: tuple[str, ...] = options["overrides"]  # type: ignore[assignment]
        experiments = [shared.read(file, overrides) for file in files]
        for experiment in experiments:
            check_lasting(experiment.tracking, experiment.storage, here=False)
        for file, experiment in zip(files, experiments, strict=True):
            check_secret(experiment.document.text, str(file))
        for override in overrides:
            check_secret(override, "--set")
    from lqray.orchestration.submission import Sweep

    dry_run = options.pop("dry_run")
    sweep = Sweep(tuple(experiment.name for experiment in experiments), files, _as_arguments(options))
    if dry_run:
        _show(sweep)
        return
    sys.exit(_submit(sweep, address, cluster, follow, no_wait))


def _show(sweep: Sweep) -> None:
    from lqray.orchestration.package import PackageError
    from lqray.orchestration.submission import shipment

    with shared.clear_errors(PackageError):
        would = shipment(sweep)
    for name in would.names:
        shared.say(name)
    shared.say(
        f"{len(would.names)} files, {would.size / 1e6:.1f} MB, would be sent, to run: {would.entrypoint}", err=True
    )
    _say_left_out(would.left_out)


def _say_left_out(names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        shared.say(f"left out, {len(names)}, since by their names they hold secrets: {shown}", err=True)


def _submit(sweep: Sweep, address: str | None, config: Path | None, follow: bool, no_wait: bool) -> int:
    from contextlib import closing, nullcontext

    from lqray.orchestration.cluster import ClusterError
    from lqray.orchestration.package import PackageError
    from lqray.orchestration.ray_access import offer_token
    from lqray.orchestration.submission import Cluster, SubmissionError, job_server
    from lqray.orchestration.tunnel import Tunnel

    offer_token()  # before anything imports Ray, which reads the setting then
    where = ["--cluster", str(config)] if config else ["--address", job_server(address)]
    with shared.clear_errors(ClusterError, SubmissionError, PackageError):
        tunnel = Tunnel(config) if config else None
        with closing(tunnel) if tunnel else nullcontext():
            cluster = Cluster(
                tunnel.address if tunnel else lambda: job_server(address), lambda text: shared.say(text, err=True)
            )
            job = cluster.submit(sweep)
            again = shlex.join(["lqray", "submit", *map(str, sweep.files), *sweep.options, *where])
            if job.attached:
                shared.say(f"{job.submission_id} runs already, with the files it was submitted with", err=True)
            else:
                shared.say(f"{job.submission_id}: submitted, {job.files} files, {job.size / 1e6:.1f} MB", err=True)
            _say_left_out(job.left_out)
            if no_wait:
                shared.say(_how_to_go_on(again, job.submission_id, sweep, where), err=True)
                return 0
            try:
                ended = cluster.outcome(
                    job.submission_id, (lambda text: shared.say(text, nl=False)) if follow else None
                )
            except KeyboardInterrupt:
                shared.say(f"\nDetached. {_how_to_go_on(again, job.submission_id, sweep, where)}", err=True)
                return 130
            shared.say(f"{job.submission_id}: {ended}", err=True)
            return 0 if ended == "SUCCEEDED" else 1


def _how_to_go_on(again: str, submission_id: str, sweep: Sweep, where: list[str]) -> str:
    option, value = where
    stop = f"RAY_AUTH_MODE=token ray job stop --address {value} {submission_id}"
    if option == "--cluster":
        stop = shlex.join(["ray", "exec", value, f"RAY_AUTH_MODE=token ray job stop {submission_id}"])
    return (
        f"{submission_id} goes on without you.\n  follow it:   {again}\n"
        f"  stop trials: {'; '.join(f'lqray stop {name} --uri ...' for name in sweep.names)}\n"
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
