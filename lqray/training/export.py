"""The network that a trial's last checkpoint holds, and the form in which it is given away: tensors, and a description
in JSON of what to build around them. Nothing in it is executed."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lqray.experiment.options.model import ModelOptions, TorchvisionOptions
from lqray.experiment.parts import is_reference
from lqray.experiment.schema import Trial, model_options
from lqray.training.checkpoint import BEST, CheckpointError, newest_first, read_checkpoint
from lqray.training.checkpoint_file import packed
from lqray.training.models import build_model
from lqray.training.storage import open_folder

DESCRIPTION, STATE = "network.json", "state.pt"
_FORM = 1


class NetworkError(ValueError):
    """A folder that holds no network in the form that lqray writes."""


def trained_network(trial: Trial, folder: str, run: str | None = None) -> tuple[nn.Module, int]:
    """(network of a finished trial, on the CPU, for evaluation, iterations that it was trained for). Its inputs are as
    `lqray.training.dataset` gives them. folder: an absolute path or a URI.

    run: that has to have written it, where it names one. Raises CheckpointError where the folder's newest checkpoint is
    damaged, of another trial or run, or of a version of lqray that did not keep what the network is built from: an
    older one would be another network.
    """
    found = _last_checkpoint(trial, folder, run)
    inputs = found["shared"]["inputs"]
    return _built(trial.model, inputs["shape"], inputs["classes"], found["shared"]["network"]), int(found["iteration"])


def write_network(trial: Trial, folder: str, target: Path, run: str | None = None) -> int:
    """Write what `read_network` reads into the folder `target`; returns the iterations that it was trained for. The
    arguments and errors are those of `trained_network`."""
    found = _last_checkpoint(trial, folder, run)
    inputs = found["shared"]["inputs"]
    network = _built(trial.model, inputs["shape"], inputs["classes"], found["shared"]["network"])
    options = _without_download(trial.model).model_dump(mode="json")
    described = {"form": _FORM, "model": options, "inputs": {name: inputs[name] for name in ("shape", "classes")}}
    (target / DESCRIPTION).write_text(json.dumps(described, indent=1), encoding="utf-8")
    (target / STATE).write_bytes(packed(network.state_dict()))
    return int(found["iteration"])


def read_network(folder: Path, own_code: bool = False) -> nn.Module:
    """The network in a folder, on the CPU, for evaluation. It is built by lqray's and torchvision's code, of options
    that are checked like an experiment's; its tensors are read as such (`weights_only`), so that who wrote the folder
    can make this fail, and run nothing. own_code: a model of a user's own may be imported and called, which the folder
    names: whoever wrote it is trusted. Raises NetworkError."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        content = (folder / STATE).read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise NetworkError(
            f"{folder} holds no network of lqray, which has a {DESCRIPTION} and a {STATE}: {error}"
        ) from error
    form = described.get("form") if isinstance(described, dict) else None
    if form != _FORM:
        raise NetworkError(f"{folder / DESCRIPTION}: found form {form!r}; this lqray reads form {_FORM}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise NetworkError(f"{folder / STATE} is not a file of tensors alone, or is damaged: {error}") from error
    try:
        inputs = described["inputs"]
        shape, classes = [int(size) for size in inputs["shape"]], int(inputs["classes"])
        options = model_options(described["model"])
        if is_reference(options.name) and not own_code:
            raise NetworkError(
                f"{folder / DESCRIPTION}: found {options.name}, a model that is not lqray's: to load it imports and "
                "calls whatever who wrote the folder has named. Where they are trusted: own_code=True"
            )
        return _built(options, shape, classes, state)
    except NetworkError:
        raise
    except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError, RuntimeError) as error:
        raise NetworkError(f"{folder}: {STATE} and {DESCRIPTION} make no network together: {error}") from error


def _built(options: ModelOptions, shape: list[int], classes: int, state: Any) -> nn.Module:
    network = build_model(_without_download(options), tuple(shape), classes)
    network.load_state_dict(state)
    return network.eval()


def _without_download(options: ModelOptions) -> ModelOptions:
    """All weights come from the state."""
    return options.model_copy(update={"pretrained": False}) if isinstance(options, TorchvisionOptions) else options


def _last_checkpoint(trial: Trial, folder: str, run: str | None) -> dict[str, Any]:
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
    if found["shared"].get("inputs") is None:
        raise CheckpointError(f"{file} does not say the shape of its inputs: an earlier version of lqray wrote it")
    return found
