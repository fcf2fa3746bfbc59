"""lqray gc: give back the space of checkpoints that nothing needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lqray.cli import shared

if TYPE_CHECKING:
    from rich.table import Table

    from lqray.orchestration.recording.garbage import Garbage


@click.command()
@click.argument("experiment")
@shared.uri
@click.option("--yes", is_flag=True, help="Remove it; without, it is only shown.")
@click.option(
    "--all", "set_aside", is_flag=True, help="Also files beside it that were renamed broken-, foreign- or unused-."
)
def gc(experiment: str, uri: str, yes: bool, set_aside: bool) -> None:
    """Show, or with --yes remove, checkpoints of EXPERIMENT, a name or a file, that nothing needs any more.

    Of trials that are finished or were stopped early the best one stays, best.pt; of attempts that a later one has
    replaced, which is over, none. Trials that run, failed, or continue with the next `lqray run` keep all. With a file,
    its storage.folder is looked into; with a name, the folder that each run recorded.
    """
    from lqray.experiment.store import StorageError, storage_address
    from lqray.orchestration.recording.garbage import garbage, removed
    from lqray.store.experiments import UnknownExperimentError, experiment_id

    with shared.clear_errors(UnknownExperimentError, StorageError):
        given = shared.recorded([experiment], uri)[0]
        experiment_id(given.uri, given.name)
        root = f"{storage_address(given.file.storage.folder)}/{given.name}" if given.file else None
        found = garbage(given.uri, given.name, root, set_aside)
        if not found:
            shared.say(f"Nothing to remove: {given.name} has no checkpoints that nothing needs.")
            return
        shared.console().print(_table(found))
        if not yes:
            more = " --all" if set_aside else ""
            name = shared.named(given.name, given.uri, Path(experiment) if given.file else None)
            argument = shared.in_command(Path(experiment)) if given.file else name
            shared.say(f"Nothing was removed. To remove it:  {shared.program()} gc {argument}{more} --yes")
            return
        freed, kept = 0, []
        for one, size in removed(given.uri, found):
            freed += size
            kept += [] if size else [one.name]
    for name in kept:
        shared.say(f"{name}: a launch has taken it up meanwhile; nothing of it was removed", err=True)
    shared.say(f"Removed {freed:,} bytes.")


def _table(found: Sequence[Garbage]) -> Table:
    from rich.table import Table

    from lqray.experiment.foreign import rich_text

    table = Table()
    for column in ("trial", "why", "files"):
        table.add_column(column)
    table.add_column("bytes", justify="right")
    for one in found:
        table.add_row(rich_text(one.name), one.why, rich_text(", ".join(one.sizes)), f"{one.size:,}")
    files = sum(len(one.sizes) for one in found)
    table.add_section()
    table.add_row("all", "", f"{files:,} files", f"{sum(one.size for one in found):,}")
    return table
