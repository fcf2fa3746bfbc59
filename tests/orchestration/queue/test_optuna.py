"""A search by Optuna: it learns from results, those of earlier launches too, and ends after so many samples."""

import math

import pytest
from mlflow import MlflowClient

from lqray.experiment.grid import read_experiment
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.plan.draws import stored_draws
from lqray.orchestration.queue.optuna import OptunaSource
from tests.testing.small import empty_store
from tests.testing.sweeps import recorded, run_here, write

TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [32]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 40, batch_size: 16}
  workers: 1
  quantizer: {method: qsgd_inf, bucket_size: 128}
search:
  sampler: optuna
  samples: 5
  metric: test/loss
  mode: min
  space: {optimizer.lr: {log_uniform: [1.0e-4, 1]}, quantizer.bits: {choice: [2, 4]}}
"""


def test_an_optuna_search_continues_where_it_was(tmp_path):
    path = write(tmp_path, text=TEXT)
    text = run_here(path, "--launcher", "inline", "--limit", "3")
    assert "no trials, 3 to be suggested" in text
    assert len(recorded(f"sqlite:///{tmp_path}/lqray.db")) == 3
    assert "3 finished before, 2 to be suggested" in run_here(path, "--launcher", "inline")
    runs = recorded(f"sqlite:///{tmp_path}/lqray.db")
    assert len(runs) == 5
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    assert len({one.data.params["optimizer.lr"] for one in runs.values()}) == 5
    assert "5 finished before" in run_here(path, "--launcher", "inline")
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    assert len(client.search_runs([client.get_experiment_by_name("sweep").experiment_id])) == 5


def test_a_result_that_is_not_a_number_teaches_nothing_and_ends_nothing(tmp_path):
    source = OptunaSource(read_experiment(write(tmp_path, text=TEXT)), [], [], (), 2)
    named = source.next()
    source.told(TrialResult(named, "FINISHED", {"test/loss": math.nan}))
    assert source.next().trial.id != named.trial.id


@pytest.mark.parametrize("rate", ["fast", "[" * 3000, "-1", "1e400", "{}", "null", "9" * 5000])
def test_a_run_of_parameters_that_no_file_has_is_passed_over(tmp_path, rate):
    client = MlflowClient(uri := empty_store(tmp_path / "lqray.db"))
    run = client.create_run(client.create_experiment("sweep"), tags={"lqray.trial_id": "0" * 16})
    client.log_param(run.info.run_id, "optimizer.lr", rate)
    client.log_param(run.info.run_id, "quantizer.bits", "[]")
    assert stored_draws(uri, read_experiment(write(tmp_path, text=TEXT))) == {}
