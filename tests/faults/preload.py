"""What a sweep imports on its way, imported ahead of the fork; and its patience, shortened."""

from __future__ import annotations

import errno
import multiprocessing.reduction
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import mlflow
import mlflow.entities
import mlflow.store.tracking.sqlalchemy_store
import rich.console
import rich.live
import rich.table
import sklearn.datasets
import torch
import torch._dynamo
import torch.distributed
import torch.nn.parallel

import lqray.cli
import lqray.cli.progress
import lqray.communication
import lqray.ops
import lqray.orchestration.launch
import lqray.orchestration.remote.job_checks
import lqray.quantization
import lqray.reporting.comparison
import lqray.reporting.figures.density
import lqray.reporting.records
import lqray.reporting.summary
import lqray.reporting.tables
import lqray.training.data.gaussian_mixture
import lqray.training.estimate
import lqray.training.models.mlp
import lqray.training.standalone
import lqray.training.worker
from tests.faults.acts import PATIENCE, Fault

_received = multiprocessing.reduction.recvfds


def _received_or_aborted(*arguments: Any) -> Any:
    """One that is killed in the middle of asking the fork server for a process would else be that server's end."""
    try:
        return _received(*arguments)
    except EOFError as error:
        raise ConnectionAbortedError(errno.ECONNABORTED, "killed while it asked") from error


multiprocessing.reduction.recvfds = _received_or_aborted

__all__ = ["hurry", "lqray", "mlflow", "rich", "sklearn", "torch"]


def hurry(fault: Fault) -> None:
    """A failed trial is tried again after a tenth of a second. Where something fails, a store that stays away is given
    up after two; where nothing does, nobody waits for long, however much else the machine has to do."""
    from lqray.orchestration.queue import queue
    from lqray.orchestration.recording import artifacts, metric_writer
    from lqray.orchestration.recording import metrics as delivery
    from lqray.orchestration.recording import recorder as recorder
    from lqray.store import outage

    metric_writer._DELIVER_SECONDS = 0.2
    delivery._FIRST_PAUSE = 0.05
    failures, _, retries, held, trial_seconds = queue.Limits.__init__.__defaults__
    if fault.mode != "none":
        patient = outage._repeated
        outage._repeated = lambda call, patience: patient(call, min(patience, PATIENCE))
        artifacts.PATIENCE = recorder.PATIENCE = recorder._SECONDS_TO_SETTLE = delivery._REFUSAL_SECONDS = PATIENCE
        artifacts.ArtifactWriter.__init__.__defaults__ = (None, PATIENCE)
        held = PATIENCE
    queue.Limits.__init__.__defaults__ = (failures, 0.1, retries, held, trial_seconds)
