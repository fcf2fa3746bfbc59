"""Where a worker looks for parts of a user's own: where its launch does."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from lqray.experiment.parts import add_place

_OF_JOBS = "working_dir_files"
"""Ray's folder of what was sent with jobs."""


def look_in(folders: Iterable[str]) -> None:
    """Let this process look for parts in folders of its launch."""
    for folder in folders:
        add_place(_here(folder))


def _here(folder: str) -> str:
    """A folder of a job as this machine has it: each unpacks what was sent in a folder of that name, which Ray puts on
    Python's path. Other folders are the same everywhere."""
    parts = Path(folder).parts
    if _OF_JOBS not in parts[:-1] or Path(folder).is_dir():
        return folder
    name, *below = parts[parts.index(_OF_JOBS) + 1 :]
    mine = next((one for one in map(Path, sys.path) if one.name == name and one.parent.name == _OF_JOBS), None)
    return str(mine.joinpath(*below)) if mine else folder
