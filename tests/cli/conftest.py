import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.small import empty_store

# Where it is recorded and its checkpoints go is for the environment to say, as in experiments/quickstart.yaml.
TEXT = """
name: small
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 30, batch_size: 16, evaluate_every: 10}
  workers: 2
  quantizer: {method: alq, bits: 3, bucket_size: 64, components: 5, update_at: [0, 10]}
sweep:
  - matrix: {optimizer.lr: [0.05, 1.0e+30]}
resources: {processes: 1}
"""


@pytest.fixture(autouse=True)
def called(monkeypatch):
    """As on a user's PATH, with the default store in the current folder."""
    monkeypatch.setattr(sys, "argv", ["lqray"])
    for name in ("MLFLOW_TRACKING_URI", "LQRAY_STORAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="package")
def swept(tmp_path_factory):
    """The folder of a sweep of two trials, of which one diverged, and what `lqray run` has said."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "small.yaml").write_text(TEXT)
    empty_store(folder / "lqray.db")
    # In a process of its own: what a launch sets up there is not another test's. As on a user's PATH.
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    left_out = ("MLFLOW_TRACKING_URI", "LQRAY_STORAGE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out} | {"PATH": places}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lqray")), "run", "small.yaml", "--launcher", "inline"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    return folder, done.stdout
