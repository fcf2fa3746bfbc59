"""What a worker process does under either launcher: train, and send rank 0's metrics to MLflow and to the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from lqray.experiment.schema import Resources, Trial
from lqray.training.loop import Report

_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker needs, as plain data. config: `Trial.config()`."""

    config: dict[str, Any]
    resources: Resources
    uri: str
    run_id: str


def work(
    task: WorkerTask,
    rank: int,
    device: str,
    progress: Callable[[Report], None] | None = None,
    on_evaluation: Callable[[Report], None] | None = None,
) -> dict[str, float]:
    """Train the task's trial on this rank and return the final metrics.

    progress: called on rank 0, at most twice a second and at every evaluation, with the latest value of every metric.
    on_evaluation: called on every rank for
    every report with an evaluation.
    """
    import torch

    from lqray.orchestration.tracking import MetricWriter
    from lqray.training.worker import run_worker

    with ExitStack() as stack:
        writer = stack.enter_context(MetricWriter(task.uri, task.run_id)) if rank == 0 else None
        shown = 0.0
        latest: dict[str, float] = {}

        def report(update: Report) -> None:
            nonlocal shown
            if writer:
                writer.write(update.iteration, update.metrics)
            latest.update(update.metrics)
            now = time.monotonic()
            if rank == 0 and progress and (update.evaluated or now - shown > _PROGRESS_SECONDS):
                shown = now
                progress(replace(update, metrics=dict(latest)))
            if update.evaluated and on_evaluation:
                on_evaluation(update)

        trial = Trial.model_validate(task.config)
        resources = task.resources
        return run_worker(trial, report, torch.device(device), resources.cpus_per_process, resources.timeout_seconds)
