"""What an installed lqray has of its source tree beside the package: `csrc`, the kernels, and `experiments`."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CARRIED = "_tree"
"""Folder of the package in which a wheel has them; setup.py puts them there."""


def carried(name: str) -> Path | None:
    """A folder of the source tree, in the wheel or in the tree itself; None where the package came alone."""
    for place in (PACKAGE / CARRIED, PACKAGE.parent):
        if (place / name).is_dir() and (place != PACKAGE.parent or (place / "setup.py").is_file()):
            return place / name
    return None
