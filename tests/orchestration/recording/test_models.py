"""Models that are given away: what is in their files, and that to load one executes none of it."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lqray.experiment.schema import Trial
from lqray.orchestration.recording import models
from lqray.training import vision
from lqray.training.checkpoint_file import written_form
from lqray.training.export import NetworkError, read_network, write_network
from lqray.training.models import build_model

CONFIG = {
    "data": {"name": "digits"},
    "model": {"name": "mlp", "layers": [5]},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 3, "batch_size": 16},
    "quantizer": {"method": "qsgd_inf", "bucket_size": 128},
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """MLflow makes the default one where somebody asks it anything."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/lqray.db")


@pytest.fixture
def trained(tmp_path):
    """(folder with the written network of a trial's last checkpoint, the network)."""
    trial = Trial.model_validate(CONFIG)
    network = build_model(trial.model, (1, 8, 8), 10).eval()
    shared = {"network": network.state_dict(), "inputs": {"shape": [1, 8, 8], "classes": 10}}
    (tmp_path / "kept").mkdir()
    parts = written_form({"trial": trial.id, "iteration": 3, "shared": shared, "ranks": []})
    (tmp_path / "kept/step-00000003.pt").write_bytes(b"".join(parts))
    target = tmp_path / "network"
    target.mkdir()
    assert write_network(trial, str(tmp_path / "kept"), target) == 3
    return target, network


def same(one, other) -> bool:
    inputs = torch.randn(7, 1, 8, 8)
    return torch.equal(one(inputs), other(inputs))


def test_a_network_of_tokens_is_given_away_and_predicts(tmp_path):
    """Of data whose shape is no image's; MLflow's pyfunc is given tokens as any integers."""
    config = CONFIG | {
        "data": {"name": "text", "context": 8},
        "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 8},
        "task": {"name": "language_modelling"},
    }
    trial = Trial.model_validate(config)
    network = build_model(trial.model, (8,), 256).eval()
    shared = {"network": network.state_dict(), "inputs": {"shape": [8], "classes": 256}}
    (tmp_path / "kept").mkdir()
    parts = written_form({"trial": trial.id, "iteration": 3, "shared": shared, "ranks": []})
    (tmp_path / "kept/step-00000003.pt").write_bytes(b"".join(parts))
    (tmp_path / "network").mkdir()
    write_network(trial, str(tmp_path / "kept"), tmp_path / "network")
    tokens = torch.arange(16).view(2, 8)
    again = read_network(tmp_path / "network")
    assert torch.equal(again(tokens), network(tokens))
    assert again.head.weight is again.embedding.weight
    predicted = models._load_pyfunc(str(tmp_path / "network")).predict(tokens.to(torch.int32).numpy())
    assert np.array_equal(predicted, network(tokens).detach().numpy())


class Trap:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self):
        return os.mkdir, (str(self._file),)


def test_a_network_is_tensors_and_a_description(trained):
    folder, network = trained
    assert sorted(file.name for file in folder.iterdir()) == ["network.json", "state.pt"]
    assert torch.load(folder / "state.pt", weights_only=True).keys() == network.state_dict().keys()
    assert same(read_network(folder), network)


def test_what_is_hidden_in_the_tensors_file_is_not_executed(trained, tmp_path):
    folder, _ = trained
    for content in (lambda: torch.save(Trap(tmp_path / "sprung"), folder / "state.pt"), None):
        if content:
            content()
        else:
            (folder / "state.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        with pytest.raises(NetworkError, match=r"state\.pt"):
            read_network(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("form", 2),
        ("model", {"name": "os", "layers": [5]}),
        ("model", {"name": "mlp", "layers": [6]}),
        ("model", None),
        ("inputs", {"shape": [1, 8], "classes": 10}),
        ("inputs", {"shape": [1, 8, float("inf")], "classes": 10}),
        ("inputs", {"shape": "abc", "classes": 10}),
        ("inputs", {"shape": [1, 8, 8], "classes": -1}),
        ("inputs", {"shape": [1, 8, 8], "classes": 10**15}),
        ("inputs", []),
    ],
)
def test_a_description_that_somebody_changed_is_an_error_that_names_the_folder(trained, key, value):
    folder, _ = trained
    file = folder / "network.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(NetworkError, match=str(folder)):
        read_network(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"form": 1}', "\0"])
def test_a_description_that_is_none_is_an_error(trained, content):
    folder, _ = trained
    (folder / "network.json").write_text(content)
    with pytest.raises(NetworkError):
        read_network(folder)


def test_pretrained_weights_are_not_downloaded_for_a_network_that_has_its_own(tmp_path, monkeypatch):
    api = vision.torchvision.models._api
    monkeypatch.setattr(api.WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("downloads"))
    (tmp_path / "network.json").write_text(
        json.dumps(
            {
                "form": 1,
                "model": {"name": "torchvision", "architecture": "squeezenet1_1", "pretrained": True},
                "inputs": {"shape": [3, 32, 32], "classes": 10},
            }
        )
    )
    torch.save({}, tmp_path / "state.pt")
    with pytest.raises(NetworkError, match="Missing key"):
        read_network(tmp_path)


@pytest.fixture
def logged(trained, tmp_path):
    """A model's folder as MLflow has it."""
    from mlflow.models import Model

    folder, network = trained
    target = tmp_path / "model"
    target.mkdir()
    models.save_model(str(target), Model(), folder)
    return target, network


def test_a_model_is_loaded_by_lqray_and_by_mlflows_pyfunc(logged):
    import mlflow

    folder, network = logged
    assert not [file for file in folder.rglob("*") if file.suffix in (".pth", ".pkl")]
    assert same(models.load_model(str(folder)), network)
    inputs = np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32)
    predicted = mlflow.pyfunc.load_model(str(folder)).predict(inputs)
    assert np.array_equal(predicted, network(torch.from_numpy(inputs)).detach().numpy())


def test_a_model_of_an_earlier_version_is_loaded_where_its_writers_are_trusted(trained, tmp_path):
    import mlflow

    _, network = trained
    folder = tmp_path / "before"
    mlflow.pytorch.save_model(network, folder, serialization_format="pickle", pip_requirements=["torch"])
    with pytest.raises(models.ModelError, match="allow_pickle=True"):
        models.load_model(str(folder))
    assert same(models.load_model(str(folder), allow_pickle=True), network)


def test_a_model_of_somebody_elses_is_refused_by_its_flavors(tmp_path):
    from mlflow.models import Model

    foreign = Model()
    foreign.add_flavor("onnx", data="x")
    (tmp_path / "m").mkdir()
    foreign.save(str(tmp_path / "m/MLmodel"))
    with pytest.raises(models.ModelError, match="onnx"):
        models.load_model(str(tmp_path / "m"))
