"""Whether the data of a trial are there and whole, before it begins: what a launch, `lqray doctor FILE` and its probes
on a cluster's nodes look at. Nothing is downloaded unless that is asked for, and no more is read than it takes.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqray.experiment.options.data import DataOptions, DownloadedOptions, FileOptions, TextOptions
from lqray.experiment.parts import is_reference
from lqray.training.data_files import data_files
from lqray.training.files import MissingDataError, folder
from lqray.training.known_data import known_data


@dataclass(frozen=True)
class DataFound:
    """What was found, in a line. later: what the first trial will get by itself; "" where everything is here."""

    found: str
    later: str = ""


def from_files(options: DataOptions) -> bool:
    """Whether the data are read from files that one machine may have and another lack."""
    return isinstance(options, FileOptions | TextOptions)


def look_at_data(options: DataOptions, fetch: bool = False) -> DataFound:
    """What is there of a trial's data. fetch: download what a trial would download itself.

    Raises MissingDataError and CorruptDataError for what would let a trial fail, and UnfitTrialError where its options
    do not fit its files; OSError for files that cannot be read.
    """
    if is_reference(options.name):
        return _own(options)
    if isinstance(options, TextOptions):
        from lqray.training.data import text

        found, later = text.look(options, fetch)
        why = "GPT-2's vocabulary is not in the cache: the first trial fetches it, which takes the network"
        return DataFound(f"text: {found}", why if later else "")
    if not isinstance(options, FileOptions):
        known = known_data(options)
        return DataFound(f"{options.name}: {known.examples:,} training examples" if known else options.name)
    downloads = isinstance(options, DownloadedOptions) and options.download
    if not downloads or fetch:
        return DataFound(f"{options.name}: {_looked(options)}, in {folder(options).path}")
    try:
        return look_at_data(options.model_copy(update={"download": False}))
    except MissingDataError:
        place = folder(options)
        if not _can_be_made(place.path):
            error = PermissionError(f"this user cannot write to {place.path}")
            raise place.not_downloaded(options.name, error) from None
        return DataFound(f"{options.name}: not yet in {place.path}", "the first trial downloads it (data.download)")


def _looked(options: FileOptions) -> str:
    module: Any = importlib.import_module(f"lqray.training.data.{options.name}")
    if look := getattr(module, "look", None):
        return str(look(options))
    return f"{module.load(options).train_examples:,} training examples"


def _own(options: DataOptions) -> DataFound:
    """Of a part of a user's own, which may make its files as the first trial begins: those that it says it reads."""
    try:
        files = data_files(options)
    except OSError as error:
        return DataFound(f"{options.name}: {error}", "its files are looked for again as the first trial begins")
    if files is None:
        return DataFound(f"{options.name}: names no files to be looked at")
    absent = [str(file) for file in files.values() if not file.exists()]
    later = f"{absent[0]} is not there, unless the first trial makes it" if absent else ""
    return DataFound(f"{options.name}: {len(files) - len(absent)} of {len(files)} files", later)


def _can_be_made(place: Path) -> bool:
    """Whether this user can write to a folder, or make it."""
    there = next(one for one in (place, *place.parents) if one.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
