"""Gradients of a trial, kept: of several workers at the same parameters, from minibatches that were not trained on yet.

What compressors make of them can be measured without training (benchmarks/compressors.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import Resources, Trial
from lqray.experiment.seeding import derive_seed
from lqray.training.checkpoint_file import packed
from lqray.training.extra_gradients import extra_gradient
from lqray.training.loop import Stepped
from lqray.training.reports import Report, StoppedError
from lqray.training.storage import open_folder
from lqray.training.worker import run_worker

VERSION = 1


class CaptureError(ValueError):
    """A file that holds no captured gradients, or in another form than this lqray knows."""


@dataclass(frozen=True)
class Captured:
    """After `iteration` steps: gradients of each parameter that is trained, by its name, float32 on the CPU, (samples,
    workers, *shape of the parameter). Sample s of worker w is of the minibatch that it would see s steps later."""

    iteration: int
    gradients: dict[str, Tensor]

    def flat(self) -> Tensor:
        """All parameters as one vector, in the order of the network: (samples, workers, n)."""
        return torch.cat([each.flatten(2) for each in self.gradients.values()], dim=2)


def capture(
    trial: Trial,
    resources: Resources,
    at: Sequence[int],
    samples: int = 8,
    say: Callable[[Report], None] = lambda report: None,
) -> list[Captured]:
    """Train a trial in this process, all its workers in turn, until after the last of the iterations `at`; after each
    of these, `samples` gradients of every worker. The training is that of `run_worker`, to the bit.

    say: called with each report. Raises UnfitTrialError for iterations that the trial does not have, ValueError for no
    iteration, one below 1, or no sample, and what `lqray.training.loop.train` raises.
    """
    wanted = sorted(set(at))
    if not wanted or wanted[0] < 1 or samples < 1:
        raise ValueError(f"iterations {list(at)}, {samples} samples; allowed: iterations and samples from 1 on")
    found: list[Captured] = []

    def after_step(stepped: Stepped) -> None:
        if wanted[-1] > stepped.iterations:
            raise UnfitTrialError(
                f"iteration {wanted[-1]} is to be captured; allowed: 1 to {stepped.iterations}, the iterations of the "
                "trial (schedule.iterations, or schedule.epochs in steps)"
            )
        if stepped.done in wanted:
            found.append(Captured(stepped.done, _gradients(trial, stepped, samples)))
        if stepped.done == wanted[-1]:
            raise StoppedError(stepped.done)

    device = torch.device("cuda:0" if resources.gpus_per_process else "cpu")
    try:
        run_worker(trial, say, device, resources.cpus_per_process, resources.timeout_seconds, after_step=after_step)
    except StoppedError:
        return found
    raise AssertionError("the last iteration was passed")


def _gradients(trial: Trial, stepped: Stepped, samples: int) -> dict[str, Tensor]:
    rows = []
    for sample in range(samples):
        for worker in range(trial.workers):
            seed = derive_seed(trial.seed, "captured", stepped.done, sample, worker)
            batch = stepped.dataset.train_batch(stepped.batches.indices(stepped.done + sample, worker), seed)
            gradient = extra_gradient(stepped.network, stepped.objective, batch, seed)
            rows.append({name: each.to("cpu", torch.float32) for name, each in gradient.items()})
    return {
        name: torch.stack([row[name] for row in rows]).view(samples, trial.workers, *rows[0][name].shape)
        for name in rows[0]
    }


def write_captures(file: Path | str, trial: Trial, name: str, captures: Sequence[Captured]) -> None:
    """A file, or an object of a store, that `torch.load(weights_only=True)` reads: {"version", "name", "trial",
    "config", "captures": [{"iteration", "gradients"}]}. name: of the trial. Raises OSError where it cannot be written.
    """
    document = {
        "version": VERSION,
        "name": name,
        "trial": trial.id,
        "config": trial.config(),
        "captures": [{"iteration": one.iteration, "gradients": one.gradients} for one in captures],
    }
    folder, _, own = str(file).rpartition("/")
    open_folder(folder or ".").write(own, packed(document))


def read_captures(file: Path | str) -> list[Captured]:
    """What `write_captures` wrote. Raises CaptureError for another file, OSError for one that cannot be read."""
    try:
        document: Any = torch.load(file, map_location="cpu", weights_only=True)
        found = document["version"], document["captures"]
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError) as error:
        raise CaptureError(f"{file} holds no captured gradients; allowed: a file of lqray capture") from error
    if found[0] != VERSION:
        raise CaptureError(f"{file} has version {found[0]} of captured gradients; allowed: {VERSION}, this lqray's")
    return [Captured(one["iteration"], one["gradients"]) for one in found[1]]
