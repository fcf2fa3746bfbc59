"""How long steps of earlier runs took."""

from __future__ import annotations

from functools import cache
from statistics import median
from typing import TYPE_CHECKING

from lqray.experiment.recorded import fields_of, filled
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.launchers.placement import processes_of
from lqray.store.client import exists, patient_client

if TYPE_CHECKING:
    from lqray.training.estimate import Estimate

_RUNS = 200
_SECONDS = "time/seconds_per_step"
# What decides how long a step takes; parameters of these sections, and these.
_SECTIONS = ("data.", "model.", "exchange.")
_KEYS = (
    "optimizer.name",
    "schedule.batch_size",
    "workers",
    "quantizer.method",
    "quantizer.bits",
    "quantizer.bucket_size",
    "telemetry.every",
    "telemetry.samples",
)


class History:
    """Median seconds per step of finished runs of one experiment, by shape; the latest 200 are looked at."""

    def __init__(self, uri: str, experiment: str) -> None:
        seconds: dict[tuple[tuple[str, str], ...], list[float]] = {}
        client = patient_client(uri) if exists(uri) else None
        found = client.get_experiment_by_name(experiment) if client else None
        if client and found:
            runs = client.search_runs(
                [found.experiment_id],
                "attributes.status = 'FINISHED'",
                order_by=["attributes.start_time DESC"],
                max_results=_RUNS,
            )
            for run in runs:
                if _SECONDS in run.data.metrics:
                    seconds.setdefault(_shape(run.data.params), []).append(run.data.metrics[_SECONDS])
        self._seconds = {shape: median(values) for shape, values in seconds.items()}
        self._known: dict[int, float | None] = {}

    def seconds_per_step(self, trial: Trial) -> float | None:
        """None where no run of this shape has finished."""
        return self._seconds.get(_shape(trial.params()))

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return not self._seconds


def expected(trial: Trial, resources: Resources, history: History) -> tuple[Estimate | None, float | None, bool]:
    """(what the trial will do, seconds it will take, whether those were measured by earlier runs)."""
    from lqray.training.estimate import estimate  # which imports torch, for seconds

    processes = processes_of(trial, resources)
    known = estimate(trial, processes)
    if known is None:
        return None, None, False
    measured = None if history.empty else history.seconds_per_step(trial)
    if measured is not None:
        return known, measured * known.iterations, True
    return known, known.seconds(processes), False


def _shape(params: dict[str, str]) -> tuple[tuple[str, str], ...]:
    whole = filled(params, _later())
    return tuple(sorted((key, value) for key, value in whole.items() if key in _KEYS or key.startswith(_SECTIONS)))


@cache
def _later() -> tuple[str, ...]:
    """What runs of before it was there do not have."""
    sections = (name.removesuffix(".") for name in _SECTIONS)
    return tuple(f"{name}.{field}" for name in sections for field in fields_of(name))
