"""What `lqray run --dry-run --link` adds: bytes of each method's step, and modelled seconds that they take on links."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lqray.experiment.foreign import rich_text
from lqray.orchestration.plan.plan import Plan
from lqray.reporting.figures.sent import readable
from lqray.reporting.fitting import print_whole
from lqray.reporting.links import Link, Step
from lqray.reporting.modelled import Network, collectives, compute_seconds, network_of
from lqray.reporting.selection import grouped, keys_of
from lqray.store.runs import Run
from lqray.training.estimate import handed

if TYPE_CHECKING:
    from rich.console import Console

_ROWS = 40


def show_links(console: Console, plan: Plan, links: Sequence[Link], workers: Sequence[int]) -> None:
    """A row for all trials of the plan that differ in nothing but the seed. Reads no data and trains nothing."""
    from rich.table import Table

    trials = {one.named.trial.id: one.named.trial for one in plan.trials}
    runs = [Run("", key, key, "MISSING", trial.params()) for key, trial in trials.items()]
    keys = keys_of(runs, ())
    parted = grouped(runs, keys)
    steps = [_step(members[0], handed(trials[members[0].trial_id])) for _, members in parted]
    known = _computing(plan) if any(steps) else {}
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for key in keys:
        table.add_column(rich_text(key.rpartition(".")[2]))
    shown = [(link, count) for link in links for count in workers]
    for title in ("bytes a step", "computing", *(f"wire, {link.name}, {count} workers" for link, count in shown)):
        table.add_column(title, justify="right")
    for (values, members), step in list(zip(parted, steps, strict=True))[:_ROWS]:
        alone = known.get(network_of(members[0]), math.nan)
        cells = [readable(step.payload) if step else "-", _seconds(alone)]
        cells += [_seconds(step.wire_seconds(count, link)) if step else "-" for link, count in shown]
        table.add_row(*(rich_text(value or "-") for value in values), *cells)
    print_whole(console, table)
    if len(parted) > _ROWS:
        console.print(f"... and {len(parted) - _ROWS:,} more")
    said = (
        "Modelled, not measured: bytes that a worker (with hierarchical: a host) hands over at a step, and the seconds"
    )
    said += " that they take on such links, one worker a host. Encoding and decoding come to that, and computing, which"
    said += " is that of the fastest run of the same network, data, batch and optimizer in this store; - : not known."
    console.print(said, highlight=False)


def _step(run: Run, sends: tuple[str, float, float, int] | None) -> Step | None:
    if sends is None:
        return None
    reduction, payload, mean, coordinates = sends
    return Step(reduction, 0.0, payload, mean, messages=collectives(run, coordinates))  # type: ignore[arg-type]


def _computing(plan: Plan) -> Mapping[Network, float]:
    """Of the networks of finished runs of this experiment."""
    from lqray.reporting.histories import read_histories
    from lqray.reporting.records import UnknownExperimentError, read_records
    from lqray.store.client import exists

    name = plan.experiment.name
    if not exists(plan.uri):
        return {}
    try:
        runs = [one for one in read_records(plan.uri, name) if one.status == "FINISHED"]
    except UnknownExperimentError:
        return {}
    ids = [one.run_id for one in runs]
    return compute_seconds(runs, lambda key: read_histories(plan.uri, name, ids, key)) if runs else {}


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
