"""The `lqray` command: arguments and wiring, nothing else. Commands import the heavy packages that they need."""

from __future__ import annotations

import click

from lqray.cli import overview, reports, services, submission, sweeps

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="lqray")
def main() -> None:
    """Learning to quantize: sweeps of data-parallel training whose gradients travel in a few bits."""


for _command in (
    *(sweeps.expand, sweeps.run, submission.submit, sweeps.train),
    *(overview.status, overview.stop, overview.logs, overview.failures),
    *(reports.report, reports.compare, reports.export, reports.plot),
    *(services.ui, services.server, services.doctor),
):
    main.add_command(_command)
