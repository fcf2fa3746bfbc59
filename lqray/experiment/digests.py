"""Digests that tags of runs have, and which of them can be compared.

A tag has the digest with its kind in front, `2:0123456789ab`: what a kind is a digest of never changes. Runs of before
there were kinds have twelve digits alone. Of a run that was continued with something else it has all of them, in order,
with commas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol


class _Hash(Protocol):
    def hexdigest(self) -> str: ...


def as_tag(kind: str, digest: _Hash) -> str:
    """What a tag has: the kind and the first 12 hexadecimal digits."""
    return f"{kind}:{digest.hexdigest()[:12]}"


def with_last(recorded: str, now: str) -> str:
    """A run's tag once it goes on with `now`; as it was where that is what it had last."""
    return recorded if recorded.split(",")[-1] == now else f"{recorded},{now}"


def is_other(recorded: str, now: str) -> bool:
    """Whether a run had last something else than there is now. False where their kinds cannot be compared."""
    return differ([recorded.split(",")[-1], now])


def differ(recorded: Iterable[str]) -> bool:
    """Whether of several runs' tags, any two of the same kinds are not equal."""
    alike: dict[frozenset[str], set[str]] = defaultdict(set)
    for one in recorded:
        kinds = frozenset(digest.rpartition(":")[0] for digest in one.split(","))
        alike[kinds].add(one)
    return any(len(values) > 1 for values in alike.values())
