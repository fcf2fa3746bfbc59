"""The `lqray` command: arguments and wiring, nothing else. Commands import the heavy packages that they need."""

from __future__ import annotations

import logging
import os
import traceback
from typing import Any

import click

from lqray.cli import expansion, garbage, gradients, installation, overview, reports, services, submission, sweeps
from lqray.experiment.foreign import in_lines
from lqray.experiment.requirements import what_is_missing
from lqray.orchestration.output import outlive_readers, was_lost

__all__ = ["main"]

_TO_BE_READ = ("expand", "status", "logs", "failures", "report", "compare", "doctor")
"""Commands that do nothing but print: when nobody reads on, they end. The others go on."""
_DEFECT = (
    "This is a defect of lqray: nothing that you did should end so. Please report it in the issue tracker of the place "
    "that you got lqray from, with the lines above, the command and what `lqray doctor` prints. Records are kept."
)


class _Plain(logging.Formatter):
    """Warnings name what others wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return in_lines(super().format(record))


class _Commands(click.Group):
    """Ctrl-C ends every command with a word and exit code 130; a command whose output could not be written fails; a
    traceback is of a defect of lqray's, and says so."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """See click."""
        try:
            return super().main(*arguments, **options)
        except SystemExit as end:
            if not end.code and was_lost():
                raise SystemExit(1) from None
            raise
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and (line := what_is_missing(error)):
                click.echo(line, err=True)
                raise SystemExit(2) from None
            traceback.print_exc()
            click.echo(_DEFECT, err=True)
            raise SystemExit(1) from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="lqray")
@click.pass_context
def main(context: click.Context) -> None:
    """Learning to quantize: sweeps of data-parallel training whose gradients travel in a few bits."""
    outlive_readers(needed=context.invoked_subcommand in _TO_BE_READ)
    # Processes that are started here do not look for modules in the working folder first: a file queue.py there would
    # be taken for Python's own.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    if logging.lastResort:
        logging.lastResort.setFormatter(_Plain())


for _command in (
    *(expansion.expand, sweeps.run, submission.submit, sweeps.train, gradients.capture),
    *(overview.status, overview.stop, overview.logs, overview.failures),
    *(reports.report, reports.compare, reports.export, reports.plot),
    *(services.ui, services.server, services.relocate, services.doctor, garbage.gc),
    *(installation.init, installation.build_native),
):
    main.add_command(_command)
