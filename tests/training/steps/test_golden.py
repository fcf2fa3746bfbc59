"""Golden trajectories of local steps: 50 steps whose losses and last anchors are on file.

To make the files anew, where the algorithm itself is to change: `python -m tests.training.steps.test_golden`, from the
root of the repository.

They hold on every machine: sums in another order move a value by some 1e-7 of itself, which 50 steps make ten times as
much, and no code of these trajectories lies so near to the border of two that this would move it
(`test_rounding_moves_nothing` tries ten times as much; a seed with which it fails is the wrong one). Values agree to
3e-5 of themselves, less than any other algorithm changes.
"""

import json
from pathlib import Path

import pytest
import torch

from lqray.experiment.schema import Trial
from lqray.training import loop
from lqray.training.models import build_model
from lqray.training.reports import Report
from lqray.training.worker import run_worker

FOLDER = Path(__file__).parent / "golden"
SETTINGS = {
    "full_precision": {
        "quantizer": {"method": "full_precision"},
        "exchange": {"every": 5, "outer": {"optimizer": "sgd", "lr": 0.8, "momentum": 0.5}},
        "seed": 4,
    },
    "qsgd": {
        "quantizer": {"method": "qsgd_inf", "bits": 2, "bucket_size": 32},
        "exchange": {
            "every": 5,
            "outer": {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.9},
            "error_feedback": "scaled",
        },
        "seed": 9,
    },
    "fragments": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 32},
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        "exchange": {
            "every": 6,
            "outer": {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.9},
            "fragments": 2,
            "overlap": 2,
            "mixing": 0.25,
            "error_feedback": True,
        },
        "seed": 3,
    },
}
CHANGES = {
    "full_precision": {"exchange": {"outer": {"momentum": 0.49}}},
    "qsgd": {"exchange": {"error_feedback": False}},
    "fragments": {"exchange": {"mixing": 0.26}},
}


def merged(config: dict, changes: dict) -> dict:
    both = {key: merged(config.get(key, {}), value) for key, value in changes.items() if isinstance(value, dict)}
    return config | changes | both


def trajectory(name: str, changes: dict | None = None) -> dict:
    """Loss of every step, mean over the workers; the payload bytes of a step; the last anchors."""
    config = {
        "data": {"name": "linear", "dimension": 8, "train_size": 256, "test_size": 64},
        "model": {"name": "mlp", "layers": [6]},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"iterations": 50, "batch_size": 8, "evaluate_every": 100},
        "telemetry": {"every": 1},
        "workers": 4,
    }
    reports: list[Report] = []
    anchors: dict[str, list[float]] = {}

    def after_step(stepped) -> None:
        for key, value in stepped.network.named_parameters():
            anchors[key] = value.detach().flatten().tolist()

    chosen = Trial.model_validate(merged(config | SETTINGS[name], changes or {}))
    final = run_worker(chosen, reports.append, torch.device("cpu"), 1, after_step=after_step)
    losses = [one.metrics["train/loss"] for one in reports if "train/loss" in one.metrics]
    return {"losses": losses, "payload bytes": final["wire/payload_bytes"], "anchors": anchors}


def trajectory_on_file(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def as_filed(found: dict, name: str) -> bool:
    """Whether a trajectory is that of the file."""
    filed = trajectory_on_file(name)
    assert found["anchors"].keys() == filed["anchors"].keys()
    pairs = [(found["losses"], filed["losses"])]
    pairs += [(found["anchors"][key], filed["anchors"][key]) for key in filed["anchors"]]
    near = all(one == pytest.approx(other, rel=3e-5, abs=3e-6) for one, other in pairs)
    return near and found["payload bytes"] == pytest.approx(filed["payload bytes"])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trajectory_is_the_one_on_file(name):
    found = trajectory(name)
    assert len(found["losses"]) == 50
    assert as_filed(found, name)


@pytest.mark.parametrize("name", SETTINGS)
def test_another_algorithm_is_seen(name):
    assert not as_filed(trajectory(name, CHANGES[name]), name)


@pytest.mark.parametrize("shake", range(3))
@pytest.mark.parametrize("name", SETTINGS)
def test_rounding_moves_nothing(name, shake, monkeypatch):
    """First parameters that differ by 1e-6 of themselves, about ten units in the last place."""

    def shaken(*arguments) -> torch.nn.Module:
        network, generator = build_model(*arguments), torch.Generator().manual_seed(shake)
        with torch.no_grad():
            for one in network.parameters():
                one.mul_(1 + 1e-6 * torch.randn(one.shape, generator=generator).clamp(-1, 1))
        return network

    monkeypatch.setattr(loop, "build_model", shaken)
    found = trajectory(name)
    assert as_filed(found, name)
    assert found["losses"] != trajectory_on_file(name)["losses"]


if __name__ == "__main__":
    for setting in SETTINGS:
        (FOLDER / f"{setting}.json").write_text(json.dumps(trajectory(setting), indent=1) + "\n")
