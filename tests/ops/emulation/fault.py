"""A fault of the CUDA kernels, and every barrier left out."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """old: text of the kernels; new: in its place. at: which of its occurrences; None: the only one."""

    name: str
    old: str
    new: str
    at: int | None = None

    def plant(self, kernels: str) -> str:
        """The kernels with this fault. Raises LookupError where the text is not there, or not once."""
        places = [match.start() for match in re.finditer(re.escape(self.old), kernels)]
        if self.at is None and len(places) != 1:
            raise LookupError(f"{self.name}: {self.old!r} is in the kernels {len(places)} times; wanted: once")
        if len(places) <= (self.at or 0):
            raise LookupError(f"{self.name}: {self.old!r} is in the kernels {len(places)} times; wanted: {self.at + 1}")
        place = places[self.at or 0]
        return kernels[:place] + self.new + kernels[place + len(self.old) :]


BARRIER = "__syncthreads();"


def barriers(kernels: str) -> list[Fault]:
    """Every barrier left out."""
    count = kernels.count(BARRIER)
    return [Fault(f"__syncthreads {i + 1} of {count} left out", BARRIER, ";", i) for i in range(count)]
