"""The smallest sweep that has everything: checkpoints, level updates, evaluations; a trial takes moments."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from mlflow import MlflowClient

from lqray.experiment.grid import Experiment, read_experiment
from lqray.orchestration.launch import Ran, run_plan
from lqray.orchestration.plan.plan import Plan, RunOptions, make_plan

TEXT = """
name: NAME
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 30, batch_size: 16, evaluate_every: 10}
  workers: 2
  quantizer: {method: alq, bits: 3, bucket_size: 64, components: 5, update_at: [0, 10]}
sweep:
  - matrix: {quantizer.method: [full_precision, alq]}
resources: {processes: 1}
tracking: {uri: "sqlite:///FOLDER/lqray.db"}
storage: {folder: FOLDER/lqray-storage, checkpoint_every: 10}
"""


class Quiet:
    """An observer that keeps the names of what began and how everything ended."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.results: dict[str, str] = {}

    def started(self, named, continued):
        self.began.append(named.name)

    def progressed(self, trial_id, report): ...
    def retrying(self, named, failure, seconds): ...
    def moving(self, named, why): ...

    def ended(self, result):
        self.results[result.named.name] = result.status


@cache
def _empty_store() -> bytes:
    """MLflow's tables, which take it seconds to make, once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/empty.db").search_experiments()
        return Path(folder, "empty.db").read_bytes()


def empty_store(file: Path) -> str:
    """A new store in this file; its address."""
    file.write_bytes(_empty_store())
    return f"sqlite:///{file}"


def write(folder: Path, name: str = "small", text: str = TEXT) -> Path:
    """An experiment file, beside a store."""
    if not (folder / "lqray.db").exists():
        empty_store(folder / "lqray.db")
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("NAME", name).replace("FOLDER", str(folder)))
    return path


def launch(path: Path, observer: Quiet | None = None, **options) -> tuple[Plan, Ran]:
    """`lqray run`, inline, in this process."""
    experiment: Experiment = read_experiment(path)
    chosen = RunOptions("inline", **options)
    plan = make_plan(experiment, chosen)
    return plan, run_plan(plan, chosen, observer or Quiet())
