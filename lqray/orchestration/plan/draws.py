"""What a search suggested before, as its runs say."""

from __future__ import annotations

import math
from typing import Any

from lqray.experiment.foreign import json_value
from lqray.experiment.grid import Experiment, NamedTrial
from lqray.experiment.options.search import Domain
from lqray.store.runs import latest_runs


def stored_draws(uri: str, experiment: Experiment) -> dict[str, tuple[NamedTrial, dict[str, Any], float | None]]:
    """By trial id, what was suggested before: the trial, its values of the space, and its metric if it is FINISHED with
    one that is finite.

    Trials of another version of the experiment file are left out.
    """
    search = experiment.search
    assert search is not None
    draws: dict[str, tuple[NamedTrial, dict[str, Any], float | None]] = {}
    for trial_id, run in latest_runs(uri, experiment.name, (), [search.metric], params=True).items():
        if not all(key in run.params for key in search.space):
            continue
        values = {key: _value(run.params[key], domain) for key, domain in search.space.items()}
        try:
            named = experiment.suggested(values)
        except (ValueError, TypeError, OverflowError):  # no trial of this file: another version, or a tool's
            continue
        if named.trial.id == trial_id:
            ended = run.metrics.get(search.metric, math.nan)
            draws[trial_id] = (named, values, ended if math.isfinite(ended) and run.status == "FINISHED" else None)
    return draws


def _value(text: str, domain: Domain) -> Any:
    """A param of MLflow's as the value that was drawn."""
    try:
        value = json_value(text)
    except ValueError:
        value = text
    for choice in domain.choice or ():
        if str(choice) == text or choice == value:
            return choice
    return value
