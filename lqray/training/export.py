"""The network that a trial's last checkpoint holds."""

from __future__ import annotations

import torch
from torch import nn

from lqray.experiment.schema import Trial
from lqray.training.checkpoint import BEST, CheckpointError, newest_first, read_checkpoint
from lqray.training.models import build_model
from lqray.training.storage import open_folder


def trained_network(trial: Trial, folder: str, run: str | None = None) -> tuple[nn.Module, int]:
    """(network of a finished trial, on the CPU, for evaluation, iterations that it was trained for). Its inputs are as
    `lqray.training.data` gives them. folder: an absolute path or a URI.

    run: that has to have written it, where it names one. Raises CheckpointError where the folder's newest checkpoint is
    damaged, of another trial or run, or of a version of lqray that did not keep what the network is built from: an
    older one would be another network.
    """
    name = next(iter(newest_first(open_folder(folder))), BEST)
    if name == BEST:
        raise CheckpointError(f"{folder} has no checkpoint of the end of a trial; found: nothing named step-*.pt")
    file = f"{folder}/{name}"
    try:
        found = read_checkpoint(file, torch.device("cpu"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if found["trial"] != trial.id:
        raise CheckpointError(f"{file} is of trial {found['trial']}, wanted is {trial.id}")
    if run and found.get("run", run) != run:
        raise CheckpointError(f"{file} is of run {found['run']}, wanted is {run}")
    inputs = found["shared"].get("inputs")
    if inputs is None:
        raise CheckpointError(f"{file} does not say the shape of its inputs: an earlier version of lqray wrote it")
    channels, height, width = inputs["shape"]
    network = build_model(trial.model, (channels, height, width), inputs["classes"])
    network.load_state_dict(found["shared"]["network"])
    return network.eval(), int(found["iteration"])
