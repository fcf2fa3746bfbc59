"""Files that lqray keeps for this user on this machine, and can make again."""

from __future__ import annotations

import os
from pathlib import Path


def kept(name: str) -> Path | None:
    """A file of that name in this user's cache; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lqray" / name
    except RuntimeError:
        return None
