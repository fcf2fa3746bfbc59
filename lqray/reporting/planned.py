"""What an experiment's file asks for, beside what has been recorded of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lqray.experiment.errors import ExperimentError
from lqray.experiment.grid import Experiment, NamedTrial, experiment_from_text
from lqray.experiment.plan import MOST_TRIALS, published_plan
from lqray.experiment.secrets import masked
from lqray.reporting.records import Run, experiment_tags, latest_attempts, read_records


class SeveralStoresError(ValueError):
    """Experiments that are not in one store."""


@dataclass(frozen=True)
class Recorded:
    """An experiment of a store. file: as it was read, where it was named by its file."""

    name: str
    uri: str
    file: Experiment | None = None


def planned_records(experiments: Sequence[Recorded], everything: bool = False) -> tuple[list[Run], list[str]]:
    """(a record for each trial of the plans, what is left out of them, in sentences).

    The plan is the experiment's file, or else what was launched last. A trial without a run is MISSING. Of a trial the
    latest attempt counts. Without a plan, with one whose trials are suggested as it goes (Optuna), or when `everything`
    is wanted, every recorded trial counts. Raises UnknownExperimentError, SeveralStoresError.
    """
    if len({one.uri for one in experiments}) > 1:
        stores = ", ".join(sorted({masked(one.uri) for one in experiments}))
        raise SeveralStoresError(f"found experiments of several stores: {stores}; allowed: of one")
    records: list[Run] = []
    remarks: list[str] = []
    for one in experiments:
        found, left_out = _of_plan(one, everything)
        records += found
        if left_out:
            remarks.append(left_out)
    unique = _each_once(records)
    if len(unique) < len(records):
        remarks.append(
            f"{len(records) - len(unique)} trials are in several of these experiments; each counts once, by its latest "
            "finished run."
        )
    return unique, remarks


def _each_once(records: Sequence[Run]) -> list[Run]:
    """A trial gives the same bits wherever it runs: counted twice, it would look like two seeds."""
    found: dict[str, Run] = {}
    for one in records:
        other = found.get(one.trial_id)
        if other is None or (one.status == "FINISHED", one.started) > (other.status == "FINISHED", other.started):
            found[one.trial_id] = one
    return list(found.values())


def _of_plan(recorded: Recorded, everything: bool) -> tuple[list[Run], str]:
    """(records, what is left out of them, in a sentence; "" for nothing)."""
    uri, experiment = recorded.uri, recorded.name
    records = latest_attempts(read_records(uri, experiment))
    if everything:
        return records, ""
    trials: Iterable[NamedTrial] | None
    if recorded.file:
        trials = None if recorded.file.adaptive else recorded.file.trials()
    else:
        try:
            trials = _published(uri, experiment)
        except ExperimentError:
            why = f"The file of {experiment} is not valid for this version of lqray"
            return records, f"{why}: all recorded runs are shown."
        except OverflowError:
            why = f"The file of {experiment}, as launched last, has more than {MOST_TRIALS:,} trials"
            return records, f"{why}: all recorded runs are shown; name the file itself to have those that are missing."
    if trials is None:
        return records, ""
    by_trial = {one.trial_id: one for one in records}
    wanted = []
    for named in trials:
        found = by_trial.pop(named.trial.id, None)
        wanted.append(
            found.called(named.name)
            if found
            else Run("", named.trial.id, named.name, "MISSING", named.trial.params(), {}, None, experiment=experiment)
        )
    if not by_trial:
        return wanted, ""
    return wanted, f"{len(by_trial)} runs of {experiment} are not of its file as it stands; --all shows them, too."


def _published(uri: str, experiment: str) -> list[NamedTrial] | None:
    """Trials of the file that was launched last; None without one, or where it suggests them as it goes. Others can
    write it: it may be too large to be expanded by everybody who reads a report. Raises ExperimentError, OverflowError.
    """
    found = published_plan(experiment_tags(uri, experiment))
    plan = experiment_from_text(found.text, f"the file of {experiment}, as launched last") if found else None
    if plan is None or plan.adaptive:
        return None
    if plan.most_trials > MOST_TRIALS:
        raise OverflowError
    return list(plan.trials())
