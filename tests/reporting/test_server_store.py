"""A sweep recorded by a real MLflow server: what `lqray run` prints of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from lqray.reporting.ui_publish import Published, page_of
from lqray.reporting.ui_view import TAG

TEXT = """
name: served
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 20, batch_size: 16, evaluate_every: 10}
  workers: 2
  quantizer: {method: qsgd_inf, bits: 3, bucket_size: 64}
tracking: {log_model: true}
resources: {processes: 1}
"""


@pytest.mark.ray
@pytest.mark.cluster
def test_a_sweep_ends_with_the_address_of_its_charts_and_without_mlflows_lines(mlflow_server, tmp_path, monkeypatch):
    """A line of MLflow's for each run that ends would stand between lqray's own, with the password of the address."""
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    server = mlflow_server(f"sqlite:///{tmp_path}/served.db")
    with_password = server.replace("http://", "http://ada:hidden@")
    (tmp_path / "served.yaml").write_text(TEXT)
    for seed, launcher in enumerate(["inline", "warm"]):
        called = [sys.executable, "-m", "lqray", "run", "served.yaml", "--launcher", launcher, "--set", f"seed={seed}"]
        done = subprocess.run(
            called,
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_TRACKING_URI": with_password, "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = done.stdout
        assert done.returncode == 0, said
        assert "finished" in said
        assert not re.search(r"View|🏃|🧪|hidden", said), said
        (page,) = re.findall(r"(?m)^Compare them in the MLflow UI:  (\S+)$", said)

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("served")
    assert page.startswith(f"{server}/#/experiments/{experiment.experiment_id}/runs?")
    assert page.endswith(f"viewStateShareKey={TAG.rpartition('.')[2]}")
    assert TAG in experiment.tags
    assert requests.get(page, timeout=60).status_code == 200
    runs = client.search_runs([experiment.experiment_id])
    commands = {run.data.tags["lqray.command"].partition(" run ")[0] for run in runs}
    assert commands == {f"{sys.executable} -m lqray"}
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://server:5000", "http://server:5000/#/x"),
        ("https://ada:a%40b@server/mlflow/", "https://server/mlflow/#/x"),
        ("http://[::1]:5000/?token=hidden", "http://[::1]:5000/#/x"),
        ("sqlite:////a/lqray.db", None),
        ("postgresql://ada:hidden@server/mlflow", None),
        (str(Path("/a/folder")), None),
    ],
)
def test_a_page_has_an_address_on_a_server_without_a_password(uri, address):
    assert page_of(uri, Published("/#/x")) == address
