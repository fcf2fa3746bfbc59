"""What tables, legends and headings call keys and their values: one name everywhere, the file's own word unless its
`labels` say another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import experiment_from_text
from lqray.experiment.labels import KeyLabels, canonical
from lqray.experiment.plan import published_plan
from lqray.reporting.comparison import Comparison
from lqray.reporting.planned import Recorded
from lqray.reporting.records import experiment_tags
from lqray.reporting.selection import METHOD, in_places

_NO = KeyLabels()


@dataclass(frozen=True)
class Labels:
    """By dotted key what files say; those without any have their own words."""

    by_key: Mapping[str, KeyLabels] = field(default_factory=dict)

    def heading(self, key: str, keys: Sequence[str] = ()) -> str:
        """Of a column or an axis for `key`, beside those for the other `keys`: what the file says; else what the key
        ends with, and of the name of a section the section: bits, optimizer. The whole key, where others end alike."""
        said = self.by_key.get(key, _NO).heading
        if said is not None:
            return said
        ending = _ending(key)
        return (key if sum(_ending(other) == ending for other in keys) > 1 else ending).replace("_", " ")

    def value(self, key: str, text: str) -> str:
        """A value of `key`, as text, or what the file calls it."""
        return self._named(key).get(canonical(text), text)

    def has(self, key: str, text: str) -> bool:
        """Whether the file has a name for a value."""
        return canonical(text) in self._named(key)

    @property
    def places(self) -> Mapping[str, Mapping[str, int]]:
        """By key and canonical value, the place that the file gives it."""
        return {key: {one: at for at, one in enumerate(self._named(key))} for key in self.by_key}

    def _named(self, key: str) -> dict[str, str]:
        return {canonical(one): name for one, name in self.by_key.get(key, _NO).values.items()}


PLAIN = Labels()


def labels_of(experiments: Sequence[Recorded]) -> Labels:
    """What the files of experiments say, as they were given, or as they were launched last; of several that differ in a
    key, the first. Files that this version cannot read say nothing. Raises UnknownExperimentError."""
    found: dict[str, KeyLabels] = {}
    for one in experiments:
        for key, own in _of(one).items():
            found.setdefault(key, own)
    return Labels(found)


def reordered(comparison: Comparison, labels: Labels) -> Comparison:
    """Groups in the order in which the files name their values; those that they do not name come after, as before."""
    values = [tuple(group.keys[key] for key in comparison.keys) for group in comparison.groups]
    methods = [one.method for group in comparison.groups for one in group.records]
    order = in_places(comparison.keys, methods, labels.places)
    found = sorted(zip(values, comparison.groups, strict=True), key=lambda item: order(item[0]))
    return replace(comparison, groups=tuple(group for _, group in found))


def _of(recorded: Recorded) -> Mapping[str, KeyLabels]:
    if recorded.file:
        return recorded.file.layout.labels
    plan = published_plan(experiment_tags(recorded.uri, recorded.name))
    if plan is None or "labels" not in plan.text:
        return {}
    try:
        return experiment_from_text(plan.text, f"the file of {recorded.name}, as launched last").layout.labels
    except ExperimentError:
        return {}


def _ending(key: str) -> str:
    if key == METHOD:
        return "method"
    section, _, option = key.rpartition(".")
    return section if option == "name" and section else option
