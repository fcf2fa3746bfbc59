"""What lqray needs and a machine may lack. (Nothing is imported here that it could lack.)"""

from __future__ import annotations

import sys

NEEDED = frozenset(
    {
        "torch",
        "torchvision",
        "ray",
        "mlflow",
        "sqlalchemy",
        "numpy",
        "pandas",
        "scipy",
        "yaml",
        "pydantic",
        "rich",
        "click",
    }
    | {"sklearn", "matplotlib", "packaging", "psutil", "fsspec", "aiohttp", "PIL", "pyarrow", "requests"}
)
"""Modules of the packages that pyproject.toml names."""


def what_is_missing(error: ModuleNotFoundError) -> str | None:
    """A line for people, and what to do; None for a module that lqray does not ask for: of its own, or of another's
    optional parts."""
    name = (error.name or "lqray").partition(".")[0]
    if name not in NEEDED:
        return None
    return (
        f"Error: lqray needs {name}, which {sys.executable} does not have; install what requirements.lock in lqray's "
        "source tree names (`make run` there, or on a cluster's machines `ray up cluster.yaml`)"
    )
