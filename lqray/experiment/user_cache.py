"""Files that lqray keeps for this user on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def kept(name: str) -> Path | None:
    """A file of that name in this user's cache, for what can be made again; None for a user without a home."""
    return _of_the_user("XDG_CACHE_HOME", ".cache", name)


def remembered(name: str) -> Path | None:
    """A file of that name in this user's state, for what cannot be made again; None for a user without a home."""
    return _of_the_user("XDG_STATE_HOME", ".local/state", name)


def _of_the_user(variable: str, usual: str, name: str) -> Path | None:
    try:
        return Path(os.environ.get(variable) or Path.home() / usual) / "lqray" / name
    except RuntimeError:
        return None
