"""What fuzz tests share: how many mutants, and how one is made. Seeded: the same numbers are the same mutants.

A test that is marked `fuzz` makes `count()` mutants. `make fuzz` runs all such tests with thousands.
"""

from __future__ import annotations

import copy
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COUNT = 300
ODD_TEXTS = (
    *("", " ", "0", "-1", "1e400", "nan", "9" * 5000, "²", "null", "{not json", "[" * 3000, '"', "{}", "[]", "true"),
    *("../../PWN", "/etc/passwd", "a\nb", "\r", "\x00", "\x1b[2J\x1b]0;x\x07", "\u202e", "\ud800", "[/x]", "[old]"),
    *("=cmd|'/C calc'!A0", "|", "<script>", "\\input{/etc/passwd}", "$x", "$\\frac{$", "_x", "{kind}", "%s", ":smile:"),
)
ODD_VALUES = (None, True, False, 0, -1, 10**400, 1e308, -0.0, float("inf"), float("nan"), [], {}, [[]], {"a": {}})


def count(default: int = COUNT) -> int:
    """Mutants of a test: `default`, or in proportion more, where LQRAY_FUZZ says how many a usual test is to have."""
    return max(1, default * int(os.environ.get("LQRAY_FUZZ") or COUNT) // COUNT)


def mutants(name: str, default: int = COUNT) -> Iterator[tuple[int, random.Random]]:
    """(number, what it is drawn with) of each mutant of the test of that name."""
    for number in range(count(default)):
        yield number, random.Random(f"{name} {number}")


def odd_text(draw: random.Random, text: str) -> str:
    """A text that is, or is made of, one that nobody expects."""
    kind = draw.randrange(4)
    if kind == 0 or not text:
        return draw.choice(ODD_TEXTS)
    at = draw.randrange(len(text))
    if kind == 1:
        return text[:at]
    if kind == 2:
        return text[:at] + draw.choice(ODD_TEXTS) + text[at:]
    return text[:at] + draw.choice('\x00\t\n\x1b",0:[]{}\u2028\u202e') + text[at + 1 :]


def odd_bytes(draw: random.Random, content: bytes) -> bytes:
    """Bytes cut, changed, doubled or put in at a few places."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at : at + draw.randint(1, 8)] = draw.randbytes(draw.randint(0, 8))
        elif kind == 2:
            changed[at:at] = changed[at : at + draw.randint(1, 200)]
        elif kind == 3 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        else:
            del changed[at : at + draw.randint(1, 200)]
    return bytes(changed)


def odd_tree(draw: random.Random, tree: Any) -> Any:
    """A copy of plain data in which a value or a key is another, or missing."""
    changed = copy.deepcopy(tree)
    below: Any = changed
    while True:
        keys = list(below) if isinstance(below, dict) else list(range(len(below))) if isinstance(below, list) else []
        if not keys:
            return changed
        key = draw.choice(keys)
        if isinstance(below[key], dict | list) and below[key] and draw.random() < 0.8:
            below = below[key]
            continue
        kind = draw.randrange(5)
        if kind == 0:
            del below[key]
        elif kind == 1 and isinstance(below, dict):
            below[draw.choice(ODD_TEXTS)] = below.pop(key)
        elif kind == 2 and isinstance(below[key], str):
            below[key] = odd_text(draw, below[key])
        else:
            below[key] = draw.choice((*ODD_VALUES, *ODD_TEXTS))
        return changed


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
