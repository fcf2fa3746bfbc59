"""Whoever claims trials, told apart from every other process, wherever it runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from lqray.experiment.foreign import whole_number


@dataclass(frozen=True)
class Holder:
    """A launch: its process, told apart from later ones of that number by `born`, in its machine's process space."""

    launch: str
    host: str
    space: str
    pid: int
    born: str

    def __str__(self) -> str:
        return " ".join((self.launch, self.host, self.space, str(self.pid), self.born))

    @classmethod
    def parse(cls, text: str) -> Holder:
        """What `str` gives. Raises ValueError for any other text."""
        launch, host, space, pid, born = text.split(" ")
        number = whole_number(pid, 0)
        if not number:
            raise ValueError(f"no number of a process: {pid!r}")
        return cls(launch, host, space, number, born)

    @classmethod
    def this_process(cls, launch: str) -> Holder:
        """The process that calls."""
        return cls(launch, socket.gethostname(), _space(), os.getpid(), _born(os.getpid()))

    def runs_here(self) -> bool | None:
        """Whether it lives; None where that cannot be seen from here."""
        if self.space != _space():
            return None
        return _born(self.pid) == self.born


def _space() -> str:
    """Where process numbers mean the same: the machine, since it was started, and the process namespace in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}:?"


def _born(pid: int) -> str:
    """When a process started, in the kernel's own count; "" for one that is no more, or only waits to be reaped."""
    try:
        # The name, in parentheses, may hold anything; after it, fields 3 (state) and 22 (start) of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc").is_dir():
            return ""
    import psutil

    return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else ""
