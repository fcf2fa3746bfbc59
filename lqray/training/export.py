"""The network that a trial's last checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lqray.experiment.schema import Trial
from lqray.training.checkpoint import BEST, CheckpointError, CorruptCheckpointError, newest_first, read_checkpoint
from lqray.training.models import build_model
from lqray.training.storage import open_folder


def trained_network(trial: Trial, folder: str) -> tuple[nn.Module, int]:
    """(network of a finished trial, on the CPU, for evaluation, iterations that it was trained for). Its inputs are as
    `lqray.training.data` gives them. folder: an absolute path or a URI.

    Raises CheckpointError where the folder's newest whole checkpoint is of another trial, or of a version of lqray that
    did not keep what the network is built from.
    """
    file, found = _newest_whole(folder)
    if found["trial"] != trial.id:
        raise CheckpointError(f"{file} is of trial {found['trial']}, wanted is {trial.id}")
    inputs = found["shared"].get("inputs")
    if inputs is None:
        raise CheckpointError(f"{file} does not say the shape of its inputs: an earlier version of lqray wrote it")
    channels, height, width = inputs["shape"]
    network = build_model(trial.model, (channels, height, width), inputs["classes"])
    network.load_state_dict(found["shared"]["network"])
    return network.eval(), int(found["iteration"])


def _newest_whole(folder: str) -> tuple[str, dict[str, Any]]:
    """(file, what it says). Those that are damaged, or no files, are passed over."""
    found = "nothing named step-*.pt"
    for name in newest_first(open_folder(folder)):
        if name == BEST:  # of some step before the end
            break
        file = f"{folder}/{name}"
        try:
            return file, read_checkpoint(file, torch.device("cpu"))
        except (CorruptCheckpointError, OSError) as error:
            found = str(error)
    raise CheckpointError(f"{folder} has no checkpoint of the end of a trial; found: {found}")
