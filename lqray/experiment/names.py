"""File names are the registry: `method: alq` is `quantization/methods/alq.py`. Names are listed, never imported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def names_in(folder: str) -> tuple[str, ...]:
    """Sorted names of the public modules of `folder`, a path inside the package such as "quantization/methods"."""
    return tuple(sorted(path.stem for path in (_PACKAGE / folder).glob("*.py") if not path.stem.startswith("_")))


def methods() -> tuple[str, ...]:
    """Quantization methods."""
    return names_in("quantization/methods")


def datasets() -> tuple[str, ...]:
    """Datasets."""
    return names_in("training/data")


def models() -> tuple[str, ...]:
    """Model families."""
    return names_in("training/models")


def optimizers() -> tuple[str, ...]:
    """Optimizers."""
    return names_in("training/optimizers")


def reductions() -> tuple[str, ...]:
    """Ways to exchange payloads."""
    return names_in("communication/reductions")


def tasks() -> tuple[str, ...]:
    """What models are trained to do."""
    return names_in("training/tasks")
