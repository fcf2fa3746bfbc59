"""Which runs a report is of, and by what they are grouped."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from lqray.experiment.choice import near_names
from lqray.experiment.errors import nearest
from lqray.experiment.identity import outside_identity
from lqray.experiment.labels import canonical
from lqray.experiment.options.data import DATA, DataOptions
from lqray.experiment.options.task import TaskOptions
from lqray.experiment.recorded import filled
from lqray.reporting.methods import in_order
from lqray.store.runs import Run

METHOD, SEED, TRIAL = "quantizer.method", "seed", "trial"
_NO_PLACES: Mapping[str, Mapping[str, int]] = {}


class UnknownKeyError(ValueError):
    """A parameter or metric that no run has, or that several could be meant by."""


def select(records: Iterable[Run], only: Sequence[str] = (), where: Sequence[str] = ()) -> list[Run]:
    """Records a name of which one of `only` matches (shell patterns, or beginnings of ids; all without any) and that
    have every KEY=VALUE of `where`. Raises UnknownKeyError."""
    everything = list(records)
    chosen = [one for one in everything if not only or any(_matches(one, pattern) for pattern in only)]
    for condition in where:
        key, sign, value = condition.partition("=")
        if not sign:
            raise UnknownKeyError(f"found {condition!r}; allowed: KEY=VALUE, such as quantizer.bits=3")
        key = resolved(key.strip(), params_of(everything), "parameter")
        chosen = [one for one in chosen if one.params.get(key) == value.strip()]
    return chosen


def _matches(record: Run, pattern: str) -> bool:
    return record.is_called(pattern) or any(fnmatch.fnmatchcase(name, pattern) for name in record.names)


def why_none(records: Sequence[Run], only: Sequence[str], where: Sequence[str]) -> str:
    """Of records none of which `select` chose: what was asked for, and what there is."""
    given = " ".join([*(f"--only {text}" for text in only), *(f"--where {text}" for text in where)])
    strange = next((text for text in only if not any(_matches(one, text) for one in records)), None)
    for condition in where:
        key, _, value = condition.partition("=")
        key = resolved(key.strip(), params_of(records), "parameter")
        values = sorted({one.params[key] for one in records if key in one.params}, key=natural)
        if value.strip() not in values:
            return f"matches {given}; {near_names(value.strip(), values)}"
    names = [name for one in records for name in (one.names if strange else (one.name,))]
    return f"matches {given}; {near_names(strange or '', names)}"


def params_of(records: Iterable[Run]) -> set[str]:
    """Every parameter that some record has."""
    return {key for one in records for key in one.params}


def metrics_of(records: Iterable[Run]) -> set[str]:
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


def alike(records: Iterable[Run]) -> list[Run]:
    """The same, each with every parameter that another of them has and that was not there yet when it was recorded."""
    runs = list(records)
    known = params_of(runs)
    return [replace(one, params=filled(one.params, known - one.params.keys())) for one in runs]


def grouping_keys(records: Sequence[Run]) -> tuple[str, ...]:
    """Parameters that tell groups of seeds apart, the method first.

    A parameter counts when it differs between runs that are equal in those before it: what follows from the method
    does not. The seed, telemetry, metrics and what is outside a trial's identity never do.
    """
    keys = [METHOD]
    groups = _parted([list(records)], METHOD)
    for key in sorted(params_of(records), key=_rank):
        if key in (METHOD, SEED, "metrics") or key.startswith("telemetry.") or key in _outside():
            continue
        if any(len({one.params.get(key) for one in group}) > 1 for group in groups):
            keys.append(key)
            groups = _parted(groups, key)
    return tuple(keys)


def keys_of(records: Sequence[Run], group_by: Sequence[str]) -> tuple[str, ...]:
    """The parameters (or `trial`) that `group_by` names; without any, `grouping_keys`. Raises UnknownKeyError."""
    if not group_by:
        return grouping_keys(records)
    known = params_of(records) | {TRIAL}
    return tuple(dict.fromkeys(resolved(name, known, "parameter") for name in group_by))


def grouped(
    records: Sequence[Run], keys: Sequence[str], places: Mapping[str, Mapping[str, int]] = _NO_PLACES
) -> list[tuple[tuple[str | None, ...], list[Run]]]:
    """Records by their values of `keys`, in the order of methods and of values, or of `places`; by TRIAL, each trial on
    its own, those of several experiments that have one name told apart by their ids."""
    ids: dict[str, set[str]] = {}
    for one in records:
        ids.setdefault(one.name, set()).add(one.trial_id)

    def value(one: Run, key: str) -> str | None:
        if key != TRIAL:
            return one.params.get(key)
        return one.name if len(ids[one.name]) == 1 else f"{one.name} ({one.trial_id[:6]})"

    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for one in records:
        groups.setdefault(tuple(value(one, key) for key in keys), []).append(one)
    order = in_places(keys, [one.method for one in records], places)
    return sorted(groups.items(), key=lambda item: order(item[0]))


_Order = Callable[[Sequence[str | None]], list[tuple[int, float, str]]]


def in_places(keys: Sequence[str], methods: Iterable[str], places: Mapping[str, Mapping[str, int]]) -> _Order:
    """A sorting key of groups by their values of `keys`: that which has a place before others; methods as in legends,
    other values in their natural order. places: by key and canonical value."""
    known = in_order(methods)

    def place(key: str, text: str | None) -> tuple[int, float, str]:
        at = places[key].get(canonical(text)) if key in places and text is not None else None
        if at is not None:
            return (-1, float(at), "")
        if key == METHOD and text in known:
            return (1, float(known.index(text)), "")
        return natural(text)

    return lambda values: [place(key, text) for key, text in zip(keys, values, strict=True)]


def natural(text: str | None) -> tuple[int, float, str]:
    """A sorting key: nothing first, then numbers by value, then words."""
    if text is None:
        return (0, 0.0, "")
    try:
        return (1, float(text), text)
    except ValueError:
        return (2, 0.0, text)


def _parted(groups: Iterable[list[Run]], key: str) -> list[list[Run]]:
    parts: list[list[Run]] = []
    for group in groups:
        by_value: dict[str | None, list[Run]] = {}
        for one in group:
            by_value.setdefault(one.params.get(key), []).append(one)
        parts += by_value.values()
    return parts


def _rank(key: str) -> tuple[int, bool, str]:
    """What a part is, such as `optimizer.name`, before its options, which follow from it."""
    sections = ("quantizer.", "exchange.", "workers", "optimizer.", "schedule.", "model.", "data.")
    rank = next((index for index, section in enumerate(sections) if key.startswith(section)), len(sections))
    return (rank, not key.endswith(".name"), key)


@cache
def _outside() -> frozenset[str]:
    classes: list[type[DataOptions]] = [*DATA.values(), DataOptions]
    of_data = {f"data.{name}" for one in classes for name in outside_identity(one)}
    return frozenset(of_data | {f"task.{name}" for name in outside_identity(TaskOptions)})
