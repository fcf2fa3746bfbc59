"""One trial on its own, without Ray and MLflow: alone in this process, or as one of torchrun's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import profiler

from lqray.experiment.headline import headline_of, name_of
from lqray.experiment.schema import Resources, Trial
from lqray.training.checkpoint import Checkpoints
from lqray.training.loop import Stepped
from lqray.training.reports import Report
from lqray.training.worker import run_worker

_TOGETHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PROFILE_WAIT, _PROFILE_WARM_UP, _PROFILE_STEPS = 3, 2, 5


class LaunchVariablesError(ValueError):
    """The environment says only in part, or not in numbers, which of several processes this one is."""


@dataclass(frozen=True)
class _Started:
    """rank, local_rank: of this process, 0 and 0 where it is alone. together: with others, as torchrun starts them."""

    rank: int = 0
    local_rank: int = 0
    together: bool = False


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
    file for each rank. Raises what `lqray.training.loop.train` raises, OSError where a file cannot be written,
    LaunchVariablesError.
    """
    headline = headline_of(trial.flat()).metric
    started = _started(on_gpus=resources.gpus_per_process > 0)
    rank = started.rank
    device = torch.device(f"cuda:{started.local_rank}" if resources.gpus_per_process else "cpu")
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
            say(line(update, headline))

        recorder = stack.enter_context(_recorder(profile, rank)) if profile else None

        def after_step(_: Stepped) -> None:
            if recorder:
                recorder.step()

        return run_worker(
            trial,
            report,
            device,
            resources.cpus_per_process,
            resources.timeout_seconds,
            checkpoints,
            after_step,
            network_interface=resources.network_interface,
            place="environment" if started.together else None,
        )


def _started(on_gpus: bool) -> _Started:
    """How torchrun's variables, or the lack of them, say that this process was started."""
    found = os.environ
    if not {"RANK", "WORLD_SIZE"} & set(found):
        return _Started()
    missing = [name for name in _TOGETHER if not found.get(name)]
    if on_gpus and not found.get("LOCAL_RANK"):
        missing.append("LOCAL_RANK")
    there = ", ".join(f"{name}={found[name]}" for name in (*_TOGETHER, "LOCAL_RANK") if name in found)
    remedy = (
        "Start several processes with torchrun --nproc-per-node N -m lqray train ..., which sets them all; to train "
        "alone, start it with env -u RANK -u WORLD_SIZE"
    )
    if missing:
        raise LaunchVariablesError(f"environment: found {there}; missing: {', '.join(missing)}. {remedy}")
    try:
        rank, world, local_rank = (int(found.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        int(found["MASTER_PORT"])
    except ValueError:
        raise LaunchVariablesError(f"environment: found {there}; allowed: whole numbers. {remedy}") from None
    if not 0 <= rank < world:
        raise LaunchVariablesError(f"environment: found {there}; allowed: RANK from 0 to WORLD_SIZE - 1. {remedy}")
    return _Started(rank, local_rank, together=True)


def _recorder(folder: Path, rank: int) -> profiler.profile:
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / f"rank-{rank}.json"
    return profiler.profile(
        schedule=profiler.schedule(wait=_PROFILE_WAIT, warmup=_PROFILE_WARM_UP, active=_PROFILE_STEPS, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(trace)),
    )


def line(report: Report, headline: str = "test/accuracy") -> str:
    """What is worth a line of a terminal, the headline metric among it."""
    shown = {
        "loss": "train/loss",
        "lr": "train/lr",
        "test loss": "test/loss",
        "test accuracy": "test/accuracy",
        "perplexity": "test/perplexity",
        "bits per byte": "test/bits_per_byte",
        "excess loss": "test/excess_loss",
        "bits per coordinate": "wire/bits_per_coordinate",
        "NMSE": "quantizer/nmse",
    }
    if headline not in shown.values():
        shown = {name_of(headline): headline, **shown}
    found = [f"{name} {report.metrics[key]:.5g}" for name, key in shown.items() if key in report.metrics]
    return f"step {report.iteration}/{report.iterations}  " + "  ".join(found)
