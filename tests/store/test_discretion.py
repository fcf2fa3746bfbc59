"""What MLflow would print and send by itself, and does not where lqray opens a store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lqray.store.client import client_of
from tests.testing.servers import answering

ROOT = Path(__file__).resolve().parents[2]
INFO = {"run_id": "a" * 32, "run_name": "alq", "experiment_id": "7", "status": "FINISHED", "lifecycle_stage": "active"}
RUN = (200, "application/json", json.dumps({"run_info": INFO, "run": {"info": INFO, "data": {}}}))
# As it is where no test and no CI runs, which MLflow's telemetry leaves alone.
ASKED = """
import os, threading
from lqray.store.client import quiet
quiet()
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client(), [one.name for one in threading.enumerate()], os.environ["MLFLOW_DISABLE_TELEMETRY"])
"""


def test_the_address_of_a_run_with_its_password_is_not_printed(monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    with answering(lambda number: RUN) as uri:
        client_of(uri.replace("http://", "http://ada:hidden@")).set_terminated("a" * 32)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("chosen", "told"), [(None, "true"), ("false", "false")])
def test_mlflow_tells_its_makers_nothing_unless_somebody_wants_it(tmp_path, chosen, told):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    if chosen:
        environment |= {"MLFLOW_DISABLE_TELEMETRY": chosen, "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"None ['MainThread'] {told}"
