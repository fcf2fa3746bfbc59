"""Seeds of a run's random streams, all derived from the trial's seed: never from time, process ids or global state."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """An unsigned 64-bit seed for one purpose, such as ("rounding", rank); other purposes, other streams."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
