"""`search.each`: groups of a sweep that are tuned on equal terms, each with as many trials as any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lqray.experiment.errors import ExperimentError, Problem
from lqray.experiment.layout import Layout
from lqray.experiment.options.search import Domain, Search
from lqray.experiment.sampling import corner, number_of_draws
from lqray.experiment.schema import Trial
from lqray.experiment.yaml import Document, Path_, dotted


def group_of(trial: Trial, each: Sequence[str]) -> tuple[str, ...]:
    """A trial's values of the keys of `search.each`, as text; "-" for a key that it does not have."""
    flat = trial.flat()
    return tuple(str(flat.get(key, "-")) for key in each)


def drawn_once(layout: Layout) -> Layout:
    """The same with one draw, so that its trials are what the sweep itself has."""
    search = layout.search
    assert search is not None
    if not search.space:
        return layout
    space = {key: Domain(choice=(value,)) for key, value in corner(search, False).items()}
    return replace(layout, search=Search(sampler="grid", space=space))


def budgeted(layout: Layout, document: Document, swept: Iterable[Trial]) -> Layout:
    """The same, with as many samples as `search.trials` pays for. swept: its trials with one draw. Raises
    ExperimentError where the groups of `search.each` do not have equally many of them, or are no groups."""
    search = layout.search
    assert search is not None
    each = search.each
    trials = list(swept)
    counts = Counter(group_of(trial, each) for trial in trials)
    for index, key in enumerate(each):
        values = {group[index] for group in counts}
        if len(values) < 2:
            found = f"{key!r}, which is {''.join(values)} in every trial"
            raise _error(document, "each", found, "keys that the sweep varies")
    sizes = {size: group for group, size in reversed(counts.items())}
    if len(sizes) > 1:
        most, least = max(sizes), min(sizes)
        found = f"{most} trials a draw of {_named(sizes[most])} and {least} of {_named(sizes[least])}"
        hint = "name what else they vary in, such as quantizer.bits, in search.each, too"
        raise _error(document, "each", found, "equally many of each group", hint)
    if search.trials is None:
        return layout
    (size,) = sizes
    fixed = search.sampler == "grid" or not search.space
    if fixed and search.trials != size * number_of_draws(search):
        allowed = f"{size * number_of_draws(search)}, which is what the grid makes of each group, or none"
        raise _error(document, "trials", str(search.trials), allowed)
    if search.trials % size:
        found = f"{search.trials}, where every draw has {size} trials in each group"
        raise _error(document, "trials", found, f"a multiple of {size}")
    if fixed:
        return layout
    return replace(layout, search=search.model_copy(update={"samples": search.trials // size}))


def said_of_budget(each: Sequence[str], trials: Iterable[Trial]) -> str:
    """How many trials each group has, as people say it; "" without `search.each`. Equal draws are one trial, so that
    a group without options to tune may have fewer than it was given."""
    if not each:
        return ""
    counts = Counter(group_of(trial, each) for trial in trials)
    sizes = Counter(counts.values())
    most = max(sizes, default=0)
    keys = " and ".join(each)
    said = f"{most} trial{'s' * (most != 1)} for each of {sizes[most]} {keys}"
    fewer = [f"{size} for {_named(group)}" for group, size in counts.items() if size < most]
    return f"{said}; {', '.join(fewer)}, whose other draws are equal" if fewer else said


def _named(group: Sequence[str]) -> str:
    return " ".join(value for value in group if value != "-")


def _error(document: Document, key: str, found: str, allowed: str, hint: str | None = None) -> ExperimentError:
    path: Path_ = ("search", key)
    return ExperimentError([Problem(document.file, document.line_of(path), dotted(path), found, allowed, hint)])
