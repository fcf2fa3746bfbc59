"""`lqray report`: the runs of experiments, grouped, compared and written in one of five formats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lqray.experiment.foreign import in_line, in_markdown, rich_text
from lqray.experiment.secrets import masked
from lqray.reporting.chosen_columns import chosen_columns
from lqray.reporting.comparison import Comparison, compare_groups
from lqray.reporting.labels import PLAIN, Labels, labels_of, reordered
from lqray.reporting.links import Link
from lqray.reporting.machine import csv_table, json_document
from lqray.reporting.modelled import Predictions, predictions
from lqray.reporting.modelled_table import modelled_columns, modelled_json, modelled_notes, modelled_rows
from lqray.reporting.origins import origins
from lqray.reporting.planned import Recorded, planned_records
from lqray.reporting.savings_table import bold_notes
from lqray.reporting.selection import UnknownKeyError, params_of, select, why_none
from lqray.reporting.tables import Column, all_columns, columns_of, latex_table, markdown_table, notes
from lqray.reporting.tuning import Tuning, searched_keys, tune
from lqray.store.runs import Run

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["terminal", "markdown", "csv", "json", "latex"]
_ADVICE = "To see them: --columns, with those that are wanted, a wider terminal, or --format markdown."


@dataclass(frozen=True)
class ReportOptions:
    """The options of `lqray report`; see its help. everything: also runs that the plan does not have. links, workers:
    of modelled steps; no links, no model. smooth: evaluations of a running mean that is to be at the target. columns:
    those to show, in this order, by their words; all without any."""

    metrics: Sequence[str] = ()
    group_by: Sequence[str] = ()
    baseline: str | None = None
    target: float | None = None
    last: int = 5
    only: Sequence[str] = ()
    where: Sequence[str] = ()
    everything: bool = False
    links: Sequence[Link] = ()
    workers: Sequence[int] = ()
    smooth: int = 0
    tuned: Sequence[str] | None = None
    """Parameters of which each group keeps its best setting; by default, without group_by, those that the files search
    for each of several groups (`search.each`)."""
    tuning_seeds: Sequence[str] = ()
    """Which choose the setting, and are left out then; by default all do, and are shown."""
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """comparison: of all experiments. records: what it compares. remarks: what a reader should know of it. modelled:
    steps on links, where they are wanted. chosen: columns of its table, where not all are wanted. labels:
    what keys and values are called in it."""

    comparison: Comparison
    records: list[Run]
    remarks: list[str] = field(default_factory=list)
    stores: dict[str, str] = field(default_factory=dict)
    modelled: Predictions | None = None
    chosen: Sequence[Column] = ()
    labels: Labels = PLAIN

    @property
    def columns(self) -> Sequence[Column]:
        """Of its table."""
        return self.chosen or columns_of(self.comparison, self.labels)

    @property
    def notes(self) -> list[str]:
        """What they mean, and what a reader should know besides."""
        return [*notes(self.comparison, self.labels, self.chosen), *self.remarks]

    @property
    def modelled_columns(self) -> Sequence[Column]:
        """Of the table of modelled steps; none without them."""
        return modelled_columns(self.comparison, self.modelled, self.labels) if self.modelled else ()


def make_report(experiments: Sequence[Recorded], options: ReportOptions) -> Report:
    """Read and compare. Raises UnknownExperimentError, SeveralStoresError, UnknownKeyError, TargetError."""
    records, remarks = planned_records(experiments, options.everything)
    chosen = select(records, options.only, options.where)
    if records and not chosen:
        names = ", ".join(one.name for one in experiments)
        raise UnknownKeyError(f"no trial of {names} {why_none(records, options.only, options.where)}")
    if not records:
        remarks.append("There are no trials of lqray.")
    group_by = options.group_by
    tuning = _tuning(experiments, chosen, options)
    if tuning:
        chosen = tuning.records
    comparison = compare_groups(
        chosen,
        experiments[0].uri,
        options.metrics,
        group_by,
        options.baseline,
        options.target,
        options.last,
        smooth=options.smooth,
    )
    if tuning:
        comparison = tuning.shown(comparison)
        chosen = [one for group in comparison.groups for one in group.records]
        remarks += tuning.remarks
    labels = labels_of(experiments)
    comparison = reordered(comparison, labels)
    counts = Counter(one.state for one in chosen)
    if set(counts) - {"finished"}:
        remarks.insert(0, ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) + ".")
    remarks += _diverged(chosen, comparison.metrics) + origins(comparison, experiments[0].uri)
    found = predictions(experiments[0].uri, comparison, options.links, options.workers) if options.links else None
    stores = {one.name: masked(one.uri) for one in experiments}
    made = Report(comparison, chosen, remarks, stores, found, labels=labels)
    if not options.columns:
        return made
    return replace(made, chosen=chosen_columns(all_columns(comparison, labels), options.columns, comparison, labels))


def _tuning(experiments: Sequence[Recorded], records: Sequence[Run], options: ReportOptions) -> Tuning | None:
    keys = options.tuned
    if keys is None:
        known = params_of(records)
        keys = () if options.group_by else [key for key in searched_keys(experiments) if key in known]
    if not keys:
        if options.tuning_seeds:
            raise UnknownKeyError(
                "found --tuning-seeds without --tuned; allowed: both, such as --tuned lr --tuning-seeds 1"
            )
        return None
    return tune(records, keys, options.group_by, options.tuning_seeds)


def _diverged(records: Sequence[Run], shown: Sequence[str]) -> list[str]:
    """Finished runs that look whole in the metrics shown, but ended with others that are not finite."""
    found: dict[str, list[str]] = {}
    for one in records:
        wrong = {key for key, value in one.metrics.items() if not math.isfinite(value)}
        if one.status == "FINISHED" and wrong.isdisjoint(shown):
            for key in sorted(wrong):
                found.setdefault(key, []).append(one.run_id)
    if not found:
        return []
    keys = ", ".join(map(in_line, list(found)[:4])) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    runs = {run_id for ids in found.values() for run_id in ids}
    return [f"{len(runs)} finished runs ended with {keys} not finite; --metric shows them."]


def written(report: Report, shape: Format) -> str:
    """As text; not for the terminal. See `show`."""
    comparison, found = report.comparison, report.modelled
    if shape == "csv":
        return csv_table(comparison, modelled_rows(found) if found else (), report.chosen)
    if shape == "json":
        return json_document(comparison, report.stores, modelled_json(found) if found else (), report.chosen)
    if shape == "latex":
        more = latex_table(comparison, report.modelled_columns, modelled_notes(found)) if found else ""
        said = [*notes(comparison, report.labels, report.chosen), *bold_notes(comparison)]
        return latex_table(comparison, report.columns, said) + more
    text = markdown_table(comparison, report.columns) + "\n\n" + _listed(report.notes)
    if found:
        text += "\n" + markdown_table(comparison, report.modelled_columns) + "\n\n" + _listed(modelled_notes(found))
    return text


def _listed(said: Sequence[str]) -> str:
    return "\n".join(f"* {in_markdown(line, sentence=True)}" for line in said) + "\n"


def show(console: Console, report: Report) -> None:
    """On the terminal."""
    from lqray.reporting.fitting import show_table

    show_table(console, report.comparison, report.columns, _ADVICE)
    for line in map(rich_text, report.notes):
        console.print(line, style="dim", highlight=False, markup=False)
    if report.modelled:
        show_table(console, report.comparison, report.modelled_columns, _ADVICE)
        for line in map(rich_text, modelled_notes(report.modelled)):
            console.print(line, style="dim", highlight=False, markup=False)
