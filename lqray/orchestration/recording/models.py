"""Models in MLflow: a flavor of lqray's own, since MLflow's for torch keeps a pickle, and to load one runs whatever its
writer put into it."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lqray.experiment.store import absolute_store

if TYPE_CHECKING:
    from torch import nn

FLAVOR = "lqray"
_LOADER = "lqray.orchestration.models"
"""In recorded models: that name stays."""
_NETWORK = "network"
_REQUIREMENTS = "requirements.txt"


class ModelError(ValueError):
    """A model in MLflow that is not loaded."""


def load_model(model: str, store: str | None = None, allow_pickle: bool = False, own_code: bool = False) -> nn.Module:
    """The network that a run recorded (`tracking.log_model`), on the CPU, for evaluation. model: MLflow's name of it,
    such as runs:/RUN/model, or a folder that was downloaded. store: URI of the MLflow store, by default that of
    MLFLOW_TRACKING_URI.

    Nothing that the model's files hold is executed. Versions of lqray before recorded pickles, and to load one executes
    what it holds: allow_pickle says that whoever may write to the store is trusted. A model of a user's own is imported
    and called where own_code says the same. Raises ModelError, NetworkError, and what MLflow raises where there is no
    such model.
    """
    from lqray.store.client import quiet
    from lqray.training.export import read_network

    quiet()
    import mlflow
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="lqray-") as folder:
        found = Path(model) if Path(model).is_dir() else _downloaded(model, absolute_store(store), folder)
        flavors = Model.load(str(found)).flavors
        if FLAVOR in flavors:
            return read_network(found / _NETWORK, own_code)
        if "pytorch" not in flavors:
            raise ModelError(f"{model} is no model of lqray: found the flavors {', '.join(flavors) or 'none'}")
        if not allow_pickle:
            raise ModelError(
                f"{model} is a pickle, as earlier versions of lqray recorded: to load it executes what whoever wrote "
                "it put there. Load it with allow_pickle=True where all who may write to the store are trusted, or "
                "record it anew: set its run's tag lqray.model to pending, and run the experiment again"
            )
        network: nn.Module = mlflow.pytorch.load_model(str(found), map_location="cpu")
        return network.eval()


def _downloaded(model: str, store: str, folder: str) -> Path:
    """MLflow's own search for a model looks for it in the store of the whole process."""
    import mlflow

    from lqray.store.client import reading_client

    client = reading_client(store)
    kind, _, name = model.partition(":/")
    place = model
    if kind == "models" and name.startswith("m-"):
        place = client.get_logged_model(name).artifact_location
    elif kind == "runs":
        run_id, _, name = name.partition("/")
        run = client.get_run(run_id)
        models = _models(client, run.info.experiment_id)
        of_run = [one for one in models if (one.source_run_id, one.name) == (run_id, name)]
        # Made anew, it is the newer one that counts; before MLflow 3 a model was an artifact of its run.
        newest = max(of_run, key=lambda one: int(one.creation_timestamp), default=None)
        place = newest.artifact_location if newest else f"{run.info.artifact_uri}/{name}"
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=folder, tracking_uri=store))


def _models(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_logged_models(experiment_ids=[experiment], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def log_model(store: str, run_id: str, name: str, config: Any, folder: str) -> None:
    """Record the network of the last checkpoint in `folder` as a run's model. config: `Trial.config()`."""
    import mlflow
    from mlflow.models import Model

    from lqray.experiment.schema import Trial
    from lqray.store.client import client_of
    from lqray.training.export import write_network

    trial = Trial.model_validate(config)
    with tempfile.TemporaryDirectory(prefix="lqray-") as aside:
        network = Path(aside) / _NETWORK
        network.mkdir()
        step = write_network(trial, folder, network, run_id)
        mlflow.set_tracking_uri(store)
        # Else it is the default one's.
        mlflow.set_experiment(experiment_id=client_of(store).get_run(run_id).info.experiment_id)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        # MLflow calls `save_model` of what it is given, here of this module.
        Model.log(
            artifact_path=None,
            name=name,
            flavor=sys.modules[__name__],
            flavor_name=FLAVOR,
            run_id=run_id,
            step=step,
            network=network,
        )


def save_model(path: str, mlflow_model: Any, network: Path) -> None:
    """Fill the folder `path`, as MLflow asks of a flavor. network: a folder of `write_network`."""
    import mlflow

    target = Path(path)
    shutil.copytree(network, target / _NETWORK)
    lines = ""
    for name in ("lqray", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):  # lqray itself may only have been sent
            lines += f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n"
    (target / _REQUIREMENTS).write_text(lines, encoding="utf-8")
    mlflow_model.add_flavor(FLAVOR, data=_NETWORK)
    mlflow.pyfunc.add_to_model(mlflow_model, loader_module=_LOADER, data=_NETWORK)
    mlflow_model.save(str(target / "MLmodel"))


class _Predictor:
    """The network as MLflow's `pyfunc` has it."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def predict(self, inputs: Any, _params: Any = None) -> Any:
        """Logits of a batch of inputs, (N, classes), of tokens (N, T, classes), both as numpy arrays."""
        import numpy as np
        import torch

        tokens = any(isinstance(layer, torch.nn.Embedding) for layer in self._network.modules())
        with torch.no_grad():
            return self._network(torch.from_numpy(np.asarray(inputs, np.int64 if tokens else np.float32))).numpy()


def _load_pyfunc(path: str) -> _Predictor:
    from lqray.training.export import read_network

    return _Predictor(read_network(Path(path)))
