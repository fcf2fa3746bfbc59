"""Fencing: the folder of a trial names who may write to it, so that a worker whose launch has lost the trial, or that
an earlier start of it has left behind, writes nothing beside, or over, what its successor writes.
"""

from __future__ import annotations

import re
from pathlib import Path

from lqray.experiment.foreign import whole_number
from lqray.training.storage import Folder, open_folder

_FILE = "claim"


class LostClaimError(RuntimeError):
    """The trial's folder belongs to another process by now."""


class Fence:
    """One worker's right to write to a trial's folder. claim: "BOARD NUMBER START", which launch's turn it is; of one
    board the higher one counts, and of several the one that came last."""

    def __init__(self, folder: Folder, claim: str) -> None:
        self._folder, self._claim = folder, claim

    def take(self) -> None:
        """From now on the folder is this worker's. Raises LostClaimError where it is a later one's, OSError."""
        if not self._claim:
            return
        written = self._written()
        if _board(written) == _board(self._claim) and _turn(written) > _turn(self._claim):
            raise self._lost(written)
        self._folder.write(_FILE, self._claim.encode())

    def check(self) -> None:
        """Raises LostClaimError where another worker has taken the folder, OSError."""
        written = self._written() if self._claim else ""
        if written == self._claim:
            return
        if written and _board(written) != _board(self._claim):
            raise self._lost(written)
        self.take()  # an earlier worker has written at the same moment, or somebody has removed the file

    def _written(self) -> str:
        try:
            return self._folder.read(_FILE).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def _lost(self, written: str) -> LostClaimError:
        return LostClaimError(
            f"{self._folder} is written by another process by now (its file {_FILE!r} says {written!r}, this process "
            f"has {self._claim!r}): the trial was taken over, or a run of another store uses the same folder. Nothing "
            "more is written by this one; `lqray run FILE` again continues the trial where it has not "
            "finished"
        )


def new_folder(address: str) -> str:
    """The first of address, address-2, address-3, ... that is not there yet. On this machine it is made, so that nobody
    else is given it, too. A folder that cannot be looked into is left to the worker, whose failure says why."""
    base, _, last = address.rpartition("-")
    number = int(last) if base and last.isdecimal() else 1
    base, chosen = base if base and last.isdecimal() else address, address
    while True:
        try:
            if _reserved(chosen):
                return chosen
        except OSError:
            return chosen
        number += 1
        chosen = f"{base}-{number}"


def own_name(address: str, trial_id: str) -> str:
    """The name of a trial's folder, at the end of an address: its id, or that with a number; "" for any other. The
    address is a tag, which others can write: it leads to no other trial's folder, nor out of that of all."""
    name = address.rstrip("/").rpartition("/")[2]
    return name if re.fullmatch(rf"{re.escape(trial_id)}(-[0-9]+)*", name) else ""


def _reserved(address: str) -> bool:
    if "://" in address:
        return not open_folder(address).names("*")
    folder = Path(address)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _board(claim: str) -> str:
    return claim.partition(" ")[0]


def _turn(claim: str) -> tuple[int, ...]:
    return tuple(whole_number(word, 0) for word in claim.split(" ")[1:] if word.isdecimal())
