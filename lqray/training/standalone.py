"""One trial on its own, without Ray and MLflow: alone in this process, or as one of torchrun's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import profiler

from lqray.experiment.schema import Resources, Trial
from lqray.training.checkpoint import Checkpoints
from lqray.training.loop import Report
from lqray.training.worker import run_worker

_PROFILE_WAIT, _PROFILE_WARM_UP, _PROFILE_STEPS = 3, 2, 5


def run_standalone(
    trial: Trial,
    resources: Resources,
    say: Callable[[str], None],
    checkpoints: Checkpoints | None = None,
    metrics_file: Path | None = None,
    profile: Path | None = None,
) -> dict[str, float]:
    """Train a trial; rank 0 calls `say` with a line for each report. Returns the final metrics.

    Alone, all workers of the trial share this process; under torchrun, its processes share them evenly. metrics_file:
    rank 0 appends every report to it, a line of JSON each. profile: a folder for torch profiler traces of five steps, a
    file for each rank. Raises what `lqray.training.loop.train` raises, OSError where a file cannot be written.
    """
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(f"cuda:{local_rank}" if resources.gpus_per_process else "cpu")
    with ExitStack() as stack:
        out = None
        if metrics_file and rank == 0:
            metrics_file.parent.mkdir(parents=True, exist_ok=True)
            out = stack.enter_context(metrics_file.open("a", encoding="utf-8", buffering=1))

        def report(update: Report) -> None:
            if rank != 0:
                return
            if out:
                out.write(json.dumps({"iteration": update.iteration, **update.metrics}) + "\n")
            say(_line(update))

        after_step = None
        if profile:
            profile.mkdir(parents=True, exist_ok=True)
            trace = profile / f"rank-{rank}.json"
            recorder = stack.enter_context(
                profiler.profile(
                    schedule=profiler.schedule(
                        wait=_PROFILE_WAIT, warmup=_PROFILE_WARM_UP, active=_PROFILE_STEPS, repeat=1
                    ),
                    on_trace_ready=lambda done: done.export_chrome_trace(str(trace)),
                )
            )
            after_step = recorder.step
        return run_worker(
            trial,
            report,
            device,
            resources.cpus_per_process,
            resources.timeout_seconds,
            checkpoints,
            after_step,
            network_interface=resources.network_interface,
        )


def _line(report: Report) -> str:
    shown = {
        "loss": "train/loss",
        "lr": "train/lr",
        "test loss": "test/loss",
        "test accuracy": "test/accuracy",
        "bits per coordinate": "wire/bits_per_coordinate",
        "NMSE": "quantizer/nmse",
    }
    found = [f"{name} {report.metrics[key]:.5g}" for name, key in shown.items() if key in report.metrics]
    return f"step {report.iteration}/{report.iterations}  " + "  ".join(found)
