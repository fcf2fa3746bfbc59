"""`lqray report --tuned`: of each group of runs the setting of some parameters that did best, as tuned methods are
compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lqray.experiment.errors import ExperimentError
from lqray.experiment.foreign import in_line
from lqray.experiment.grid import experiment_from_text
from lqray.experiment.headline import Headline, common_headline
from lqray.experiment.plan import published_plan
from lqray.reporting.comparison import Comparison
from lqray.reporting.planned import Recorded
from lqray.reporting.records import experiment_tags
from lqray.reporting.selection import METHOD, SEED, UnknownKeyError, alike, grouped, keys_of, params_of, resolved
from lqray.store.runs import Run

TRIED = "tried"
_OVER = ("finished", "failed", "stopped early")
_Key = tuple[str, str]


@dataclass(frozen=True)
class _Choice:
    """A group's setting, how many settings ended, and its runs as they were recorded, by those without it."""

    setting: tuple[str | None, ...]
    tried: int
    originals: Mapping[_Key, Run]


@dataclass(frozen=True)
class Tuning:
    """records: of the best setting of each group, without the tuned parameters, so that groups are compared across
    settings. remarks: what a reader should know of the choice."""

    keys: tuple[str, ...]
    records: list[Run]
    remarks: list[str]
    choices: Mapping[_Key, _Choice]

    def shown(self, comparison: Comparison) -> Comparison:
        """A comparison of `records` with the chosen setting and how many were tried among its keys."""
        most = max((one.tried for one in self.choices.values()), default=0)
        groups = []
        for group in comparison.groups:
            choices = [self.choices[_key(one)] for one in group.records]
            found = {key: _only(choice.setting[place] for choice in choices) for place, key in enumerate(self.keys)} | {
                TRIED: _tried([choice.tried for choice in choices], most)
            }
            originals = tuple(self.choices[_key(one)].originals[_key(one)] for one in group.records)
            groups.append(replace(group, keys={**group.keys, **found}, records=originals))
        return replace(comparison, keys=(*comparison.keys, *self.keys, TRIED), groups=tuple(groups))


def searched_keys(experiments: Sequence[Recorded]) -> tuple[str, ...]:
    """Keys that the experiments' files search for each of several groups (`search.each`)."""
    found: dict[str, None] = {}
    for one in experiments:
        file = one.file
        if file is None:
            plan = published_plan(experiment_tags(one.uri, one.name))
            if plan is None or "each" not in plan.text:
                continue
            try:
                file = experiment_from_text(plan.text, one.name)
            except ExperimentError:
                continue
        if file.search and file.search.each:
            found |= dict.fromkeys(file.search.space)
    return tuple(found)


def tune(records: Sequence[Run], keys: Sequence[str], group_by: Sequence[str], seeds: Sequence[str] = ()) -> Tuning:
    """Keep of each group the runs of one setting of `keys`: that with the best mean of the headline over its finished
    runs, of the settings that have most of these with a finite value; of equal ones the first by value.

    records: at most one a trial. group_by: as of `compare_groups`; by default what varies beside the keys. seeds: on
    which settings are chosen; their runs are left out then. Raises UnknownKeyError.
    """
    records = alike(records)
    known = params_of(records)
    keys = tuple(dict.fromkeys(resolved(key, known, "parameter") for key in keys))
    if never := {SEED, METHOD} & set(keys):
        raise UnknownKeyError(f"found --tuned {', '.join(sorted(never))}; allowed: what is tuned, such as optimizer.lr")
    bare = [replace(one, params={key: text for key, text in one.params.items() if key not in keys}) for one in records]
    originals = {_key(one): one for one in records}
    if both := set(keys) & set(keys_of(records, group_by) if group_by else ()):
        raise UnknownKeyError(f"found {', '.join(sorted(both))} in --group-by and in --tuned; allowed: one of them")
    if absent := set(seeds) - {one.params.get(SEED, "") for one in records}:
        raise UnknownKeyError(f"found --tuning-seeds {', '.join(sorted(absent))}; allowed: seeds that runs have")
    headline = common_headline(one.params for one in records)
    kept: list[Run] = []
    blind = 0
    choices: dict[_Key, _Choice] = {}
    for _, members in grouped(bare, keys_of(bare, group_by)):
        settings = grouped([originals[_key(one)] for one in members], keys)
        setting, best, usable = _best(settings, headline, seeds)
        blind += not usable and len(settings) > 1
        tried = sum(any(one.state in _OVER for one in runs) for _, runs in settings)
        choice = _Choice(setting, tried if any(setting) else 0, originals)
        chosen = {_key(one) for one in best}
        own = [one for one in members if _key(one) in chosen]
        own = [one for one in own if one.params.get(SEED) not in seeds]
        kept += own
        choices |= {_key(one): choice for one in own}
    if records and not kept:
        raise UnknownKeyError("found every seed in --tuning-seeds; allowed: some, so that others are left to be judged")
    remarks = _remarks(keys, headline, records, seeds, choices)
    if blind:
        remarks.append(f"Rows of which no run says which setting is best, and the first is shown: {blind}.")
    return Tuning(keys, kept, remarks, choices)


def _key(record: Run) -> _Key:
    """Of a run, and of a trial without one."""
    return record.run_id, record.trial_id


def _best(
    settings: Sequence[tuple[tuple[str | None, ...], list[Run]]], headline: Headline, seeds: Sequence[str]
) -> tuple[tuple[str | None, ...], list[Run], bool]:
    """(setting, its runs, whether any run could choose it)."""

    def values(runs: Sequence[Run]) -> list[float]:
        choosing = [one for one in runs if one.status == "FINISHED" and (not seeds or one.params.get(SEED) in seeds)]
        found = [one.metrics.get(headline.metric, math.nan) for one in choosing]
        return [value for value in found if math.isfinite(value)]

    def merit(item: tuple[tuple[str | None, ...], list[Run]]) -> tuple[int, float]:
        found = values(item[1])
        mean = fmean(found) if found else 0.0
        return len(found), mean if headline.higher else -mean

    setting, runs = max(settings, key=merit)
    return setting, runs, bool(values(runs))


def _remarks(
    keys: Sequence[str],
    headline: Headline,
    records: Sequence[Run],
    seeds: Sequence[str],
    choices: Mapping[_Key, _Choice],
) -> list[str]:
    what = " and ".join(map(in_line, keys))
    said = [
        f"Tuned: each row is of the {what} with the best mean {in_line(headline.metric)}; tried: of how many settings."
    ]
    if seeds:
        said.append(f"They were chosen by seed {', '.join(map(in_line, seeds))}, which enters none of the numbers.")
    else:
        said.append("The runs that are shown also chose it: the numbers flatter, and most where most was tried.")
    tried = {one.tried for one in choices.values() if one.tried}
    if len(tried) > 1:
        said.append(f"Unequally tuned: rows had {min(tried)} to {max(tried)} settings; to compare them is not fair.")
    waiting = Counter(one.state for one in records if one.state not in _OVER)
    if waiting:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(waiting.items()))
        said.append(f"Trials that may still change the choice: {counts}.")
    return said


def _tried(counts: Sequence[int], most: int) -> str | None:
    if not any(counts):
        return None
    least = min(counts)
    if least == most:
        return str(least)
    return f"{'untuned' if least == 1 else 'less tuned'} ({least} of {most})"


def _only(values: Iterable[str | None]) -> str | None:
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else ", ".join(map(str, found))
