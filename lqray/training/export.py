"""The network that a trial's last checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lqray.experiment.schema import Trial
from lqray.training.checkpoint import CheckpointError, read_checkpoint
from lqray.training.models import build_model


def trained_network(trial: Trial, folder: Path) -> nn.Module:
    """The network of a finished trial, on the CPU, for evaluation; its inputs are as `lqray.training.data` gives them.

    Raises CheckpointError where the folder's newest checkpoint is of another trial, or of a version of lqray that did
    not keep what the network is built from.
    """
    files = sorted(folder.glob("step-*.pt"))
    if not files:
        raise CheckpointError(f"{folder} has no checkpoint of the end of a trial; found: nothing named step-*.pt")
    found = read_checkpoint(files[-1], torch.device("cpu"))
    if found["trial"] != trial.id:
        raise CheckpointError(f"{files[-1]} is of trial {found['trial']}, wanted is {trial.id}")
    inputs = found["shared"].get("inputs")
    if inputs is None:
        raise CheckpointError(f"{files[-1]} does not say the shape of its inputs: an earlier version of lqray wrote it")
    channels, height, width = inputs["shape"]
    network = build_model(trial.model, (channels, height, width), inputs["classes"])
    network.load_state_dict(found["shared"]["network"])
    return network.eval()
