"""Publishes the view of an experiment, and what it shows beside what was measured, in the experiment's store."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from lqray.experiment.layout import CLAIMS
from lqray.experiment.secrets import masked
from lqray.reporting.comparison import Comparison, compare_groups
from lqray.reporting.records import latest_attempts, read_records
from lqray.reporting.ui_view import KEY, TAG, envelope, group_name, state_of, view_state
from lqray.store.client import reading_client
from lqray.store.experiments import ActiveExperiment, active_experiments, unknown_experiment
from lqray.store.runs import read_runs
from lqray.store.tags import DIFFERENCE, GROUP, KIND, MODEL_TRAINING, UNLISTED


@dataclass(frozen=True)
class Published:
    """path: of the experiment's page, after the UI's address. missing: why the page is not the view made for the
    experiment; None where it is."""

    path: str
    missing: str | None = None


def page_of(uri: str, published: Published) -> str | None:
    """The address of the experiment's page, without a user's name and password; None where the store is no server's."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    server = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    return server + published.path


def publish_view(uri: str, experiment: str) -> Published:
    """Keep the view as a tag of the experiment, and with its runs their group and how they differ from the baseline.
    Only what has changed is written. A store that takes nothing costs the view, and is said.

    Raises UnknownExperimentError; StoreError where the store cannot be read.
    """
    known = active_experiments(uri)
    if experiment not in known:
        raise unknown_experiment(uri, experiment, known)
    found = known[experiment]
    charts = f"/#/experiments/{found.id}/runs?compareRunsMode=CHART&workflowType=machine_learning"
    records = latest_attempts(read_records(uri, experiment))
    if not records:
        return Published(charts, "no runs are recorded yet")
    comparison = compare_groups(records, uri, histories=False)
    try:
        client = reading_client(uri)
        if CLAIMS in known and UNLISTED not in known[CLAIMS].tags:  # made by an earlier version
            client.set_experiment_tag(known[CLAIMS].id, UNLISTED, "true")
        _write_view(client, found, view_state(records, comparison))
        _write_runs(client, uri, experiment, comparison)
    except Exception as error:  # whatever a store may say that may only be read
        return Published(charts, masked(f"{type(error).__name__}: {error}"))
    return Published(f"{charts}&viewStateShareKey={KEY}")


def _write_view(client: Any, found: ActiveExperiment, state: Mapping[str, Any]) -> None:
    if KIND not in found.tags:  # a user may have chosen another
        client.set_experiment_tag(found.id, KIND, MODEL_TRAINING)
    if state_of(found.tags.get(TAG, "")) != state:
        client.set_experiment_tag(found.id, TAG, envelope(state))


def _write_runs(client: Any, uri: str, experiment: str, comparison: Comparison) -> None:
    """What no longer holds, of a run whose counterpart is gone, becomes NaN: MLflow deletes no metric."""
    from mlflow.entities import Metric, RunTag

    stored = {one.run_id: one for one in read_runs(uri, experiment, [GROUP], [DIFFERENCE], params=False)}
    differences, now = _differences(comparison), int(time.time() * 1000)
    for group in comparison.groups:
        name = group_name(group.keys)
        for one in group.records:
            known = stored.get(one.run_id, one)
            tags = [] if known.tags.get(GROUP) == name else [RunTag(GROUP, name)]
            before, value = known.metrics.get(DIFFERENCE, math.nan), differences.get(one.run_id, math.nan)
            same = before == value or (math.isnan(before) and math.isnan(value))
            metrics = [] if same else [Metric(DIFFERENCE, value, now, 0)]
            if tags or metrics:
                client.log_batch(one.run_id, metrics=metrics, tags=tags)


def _differences(comparison: Comparison) -> dict[str, float]:
    """By run id. The baseline's own are zero, so that charts show it."""
    found: dict[str, float] = {}
    for group in comparison.groups:
        measured = group.metrics.get(comparison.headline.metric)
        if measured is None:
            continue
        if measured.difference is not None:
            found |= measured.difference.spread.values
        elif comparison.baseline is not None:
            found |= {
                one.run_id: 0.0
                for one in group.finished
                if one.method == comparison.baseline and math.isfinite(measured.final.values.get(one.run_id, math.nan))
            }
    return found
