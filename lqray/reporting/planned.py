"""What an experiment's file asks for, beside what has been recorded of it."""

from __future__ import annotations

from dataclasses import replace

from lqray.experiment.grid import Experiment, experiment_from_text
from lqray.experiment.plan import published_plan
from lqray.reporting.records import Record, experiment_tags, latest_attempts, read_records


def planned_records(uri: str, experiment: str, file: Experiment | None = None) -> tuple[list[Record], int]:
    """(a record for each trial of the plan, runs left out because it does not have their trials).

    The plan is `file`, or else what was launched last. A trial without a run is MISSING. Without a plan, or with one
    whose trials are suggested as it goes (Optuna), every recorded trial counts. Raises UnknownExperimentError.
    """
    plan = file or _published(uri, experiment)
    records = latest_attempts(read_records(uri, experiment))
    if plan is None or plan.adaptive:
        return records, 0
    by_trial = {one.trial_id: one for one in records}
    wanted = []
    for named in plan.trials():
        found = by_trial.pop(named.trial.id, None)
        wanted.append(
            replace(found, name=named.name)
            if found
            else Record(
                "", named.trial.id, named.name, "MISSING", named.trial.params(), {}, None, experiment=experiment
            )
        )
    return wanted, len(by_trial)


def _published(uri: str, experiment: str) -> Experiment | None:
    found = published_plan(experiment_tags(uri, experiment))
    return experiment_from_text(found[1], f"the file of {experiment}, as launched last") if found else None
