"""Metrics of a user's own, measured on the test set beside those of the task: a list of references."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from pydantic import AfterValidator, Field

from lqray.experiment import parts
from lqray.experiment.options.section import Word


def metric_name(reference: str) -> str:
    """What a metric is recorded as, below test/: the last word of its reference."""
    return reference.rpartition(":")[2].rpartition(".")[2]


def _resolved(names: tuple[str, ...]) -> tuple[str, ...]:
    """With references in the place of names of entry points. Raises ValueError."""
    for name in names:
        if not parts.is_own("metrics", name):
            listed = ", ".join(("module:attribute", *parts.known("metrics")))
            raise ValueError(f"{listed}; found {name!r}")
    references = tuple(parts.reference_of("metrics", name) or name for name in names)
    counts = Counter(metric_name(reference) for reference in references)
    for name, count in counts.items():
        if count > 1 or not name.isascii():
            taken = "two of them" if count > 1 else "not ASCII"
            raise ValueError(f"functions of names of their own, recorded as test/NAME; found {name!r}, {taken}")
    return references


Metrics = Annotated[tuple[Word, ...], Field(strict=False, max_length=100), AfterValidator(_resolved)]
