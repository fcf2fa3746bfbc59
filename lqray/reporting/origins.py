"""Whether runs that a table compares were of the same code and data, in a sentence for the whole of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lqray.experiment.digests import differ
from lqray.experiment.foreign import in_line
from lqray.experiment.store import as_argument
from lqray.reporting.comparison import Comparison
from lqray.store.runs import Run
from lqray.store.tags import DATA, PARTS

_ORIGINS = {
    PARTS: ("Other code", "whose parts differ in code"),
    DATA: ("Other data", "whose data were of files that differ"),
}
_NAMES = ("data.name", "model.name", "optimizer.name", "quantizer.method", "task.name", "metrics")
_MOST = 3


def origins(comparison: Comparison, uri: str) -> list[str]:
    """Of code and of data a sentence, where finished runs of equal parts, or of equal options of the data, have digests
    that differ: how many rows have such runs, of which digests, and the command that compares two. uri: absolute store,
    or folder."""
    said = []
    for tag, (what, how) in _ORIGINS.items():
        classes: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for one in (run for group in comparison.groups for run in group.finished if tag in run.tags):
            classes.setdefault(tuple(_alike(one, tag)), []).append(one)
        odd = [runs for runs in classes.values() if differ(run.tags[tag] for run in runs)]
        if not odd:
            continue
        ids = {run.run_id for runs in odd for run in runs}
        rows = sum(any(run.run_id in ids for run in group.finished) for group in comparison.groups)
        counts = Counter(run.tags[tag] for runs in odd for run in runs)
        shown = [f"{count} of {in_line(digest)}" for digest, count in counts.most_common(_MOST)]
        shown += [f"{len(counts) - _MOST} more"] if len(counts) > _MOST else []
        first = odd[0][0]
        other = next(run for run in odd[0] if differ([run.tags[tag], first.tags[tag]]))
        command = f"lqray compare {first.run_id} {other.run_id} --experiment {as_argument(first.experiment, uri)}"
        said.append(
            f"{what}: {rows} of {len(comparison.groups)} rows have runs {how} ({', '.join(shown)}): `{command}`"
        )
    return said


def _alike(run: Run, tag: str) -> Iterator[tuple[str, str]]:
    """Of runs of the same code, or data, as far as their options say, the same."""
    for key, value in sorted(run.params.items()):
        if key.startswith("data.") if tag == DATA else key in _NAMES:
            yield key, value
