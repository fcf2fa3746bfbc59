"""Which runs a report is of, and by what they are grouped."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache

from lqray.experiment import dataset_options
from lqray.experiment.dataset_options import DataOptions
from lqray.experiment.errors import nearest
from lqray.experiment.identity import outside_identity
from lqray.reporting.records import Record

METHOD, SEED = "quantizer.method", "seed"


class UnknownKeyError(ValueError):
    """A parameter or metric that no run has, or that several could be meant by."""


def select(records: Iterable[Record], only: Sequence[str] = (), where: Sequence[str] = ()) -> list[Record]:
    """Records whose name one of `only` matches (shell patterns; all without any) and that have every KEY=VALUE of
    `where`. Raises UnknownKeyError."""
    chosen = [one for one in records if not only or any(fnmatch.fnmatchcase(one.name, text) for text in only)]
    for condition in where:
        key, sign, value = condition.partition("=")
        if not sign:
            raise UnknownKeyError(f"found {condition!r}; allowed: KEY=VALUE, such as quantizer.bits=3")
        key = resolved(key.strip(), params_of(chosen), "parameter")
        chosen = [one for one in chosen if one.params.get(key) == value.strip()]
    return chosen


def params_of(records: Iterable[Record]) -> set[str]:
    """Every parameter that some record has."""
    return {key for one in records for key in one.params}


def metrics_of(records: Iterable[Record]) -> set[str]:
    """Every metric that some record has."""
    return {key for one in records for key in one.metrics}


def resolved(name: str, known: Collection[str], what: str) -> str:
    """The dotted or slashed key that `name` is, or is the ending of, as bits is of quantizer.bits. Raises
    UnknownKeyError."""
    if name in known:
        return name
    endings = sorted(key for key in known if key.endswith((f".{name}", f"/{name}")))
    if len(endings) == 1:
        return endings[0]
    if endings:
        raise UnknownKeyError(f"found {what} {name!r}, which may be {' or '.join(endings)}; allowed: one of them")
    by_ending = {re.split(r"[./]", key)[-1]: key for key in sorted(known)}
    near = nearest(name, known) or by_ending.get(nearest(name, by_ending) or "")
    hint = f"did you mean {near!r}?" if near else None
    listed = ", ".join(sorted(known)) or "none: no run has recorded any"
    raise UnknownKeyError(f"found {what} {name!r}; {f'{hint} ' if hint else ''}allowed: {listed}")


def grouping_keys(records: Sequence[Record]) -> tuple[str, ...]:
    """Parameters that tell groups of seeds apart, the method first.

    A parameter counts when it differs between runs that are equal in those before it: what follows from the method
    does not. The seed, telemetry and what is outside a trial's identity never do.
    """
    keys = [METHOD]
    groups = _parted([list(records)], METHOD)
    for key in sorted(params_of(records), key=_rank):
        if key in (METHOD, SEED) or key.startswith("telemetry.") or key in _outside():
            continue
        if any(len({one.params.get(key) for one in group}) > 1 for group in groups):
            keys.append(key)
            groups = _parted(groups, key)
    return tuple(keys)


def natural(text: str | None) -> tuple[int, float, str]:
    """A sorting key: nothing first, then numbers by value, then words."""
    if text is None:
        return (0, 0.0, "")
    try:
        return (1, float(text), text)
    except ValueError:
        return (2, 0.0, text)


def _parted(groups: Iterable[list[Record]], key: str) -> list[list[Record]]:
    parts: list[list[Record]] = []
    for group in groups:
        by_value: dict[str | None, list[Record]] = {}
        for one in group:
            by_value.setdefault(one.params.get(key), []).append(one)
        parts += by_value.values()
    return parts


def _rank(key: str) -> tuple[int, str]:
    sections = ("quantizer.", "exchange.", "workers", "optimizer.", "schedule.", "model.", "data.")
    rank = next((index for index, section in enumerate(sections) if key.startswith(section)), len(sections))
    return (rank, key)


@cache
def _outside() -> frozenset[str]:
    classes: list[type[DataOptions]] = [*dataset_options.DATA.values(), DataOptions]
    return frozenset(f"data.{name}" for one in classes for name in outside_identity(one))
