"""What the fuzzers share: how many mutants, and how long one may take."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

MUTANTS = int(os.environ.get("LQRAY_FUZZ", "300"))
"""Of each test."""


def seeds(test: str) -> Iterator[random.Random]:
    """A generator of random numbers for each mutant, always the same."""
    for number in range(MUTANTS):
        yield random.Random(f"{test} {number}")


@contextmanager
def limits(seconds: float, mebibytes: float) -> Iterator[None]:
    """Raise TimeoutError inside after so many seconds of this process's own time, AssertionError at the end where its
    memory has grown by more."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"it took over {seconds} s")

    before = signal.signal(signal.SIGVTALRM, ring)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    assert grown < mebibytes, f"it took {grown:.0f} MiB"
