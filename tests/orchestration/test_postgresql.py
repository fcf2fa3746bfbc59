"""MLflow on PostgreSQL: many launches at a time, a server on it that goes away, and a password that nobody sees."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.store.client import reading_client
from lqray.store.runs import _from_search, _from_tables
from lqray.store.tables import connected
from tests.orchestration.test_sweeps import free_port, serve
from tests.testing.postgresql import postgresql, why_not
from tests.testing.sweeps import checkpointed, histories, killing, output, recorded, run, start, wait_for, write

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 20}
  workers: 1
  quantizer: {method: qsgd_inf, bucket_size: 128}
  telemetry: {every: 1}
sweep:
  - matrix: {seed: [1, 2, 3, 4, 5, 6, 7, 8]}
tracking: {uri: "URI"}
storage: {folder: storage, checkpoint_every: 50}
resources: {concurrent_trials: 8}
"""


@pytest.fixture(scope="module")
def database():
    with postgresql() as uri:
        # MLflow makes its tables; that is not what is tested here.
        MlflowClient(uri).search_experiments()
        yield uri


@pytest.mark.processes
def test_two_that_open_a_new_database_at_once_both_have_it():
    program = "import sys; from lqray.store.client import client_of; client_of(sys.argv[1]).search_experiments()"
    with postgresql() as uri:
        started = [
            subprocess.Popen([sys.executable, "-c", program, uri], stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        said = [process.communicate(timeout=300)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], said


def untold(folder: Path, secret: str) -> None:
    """No file that a sweep or MLflow wrote holds the secret, but the experiment file itself."""
    found = [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
    assert [file.name for file in found] == ["sweep.yaml"]


@pytest.mark.slow
def test_eight_launches_at_a_time_on_postgresql(tmp_path, database):
    """All eight want all eight trials; each is run once, with every metric once."""
    path = write(tmp_path, 60, database, TEXT)
    launches = [start(path, "--launcher", "inline") for _ in range(8)]
    try:
        for launch in launches:
            assert launch.wait(300) == 0, output(path)
    finally:
        for launch in launches:
            with killing(launch):
                pass
    runs = recorded(database)
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    assert sorted(runs) == [f"seed{number}" for number in range(1, 9)]
    for name, of_run in histories(database).items():
        assert [step for step, _ in of_run["train/loss"]] == list(range(1, 61)), name

    wanted = "sweep", None, None, True
    with connected(database) as connection:
        tables = sorted(_from_tables(connection, *wanted), key=lambda state: state.run_id)
    search = sorted(_from_search(reading_client(database), *wanted), key=lambda state: state.run_id)
    assert tables == search
    assert len(tables) == 8

    text = run(path, "--launcher", "inline")
    assert "8 finished before" in text
    assert "postgresql+psycopg://lqray:***@127.0.0.1" in text
    status = [sys.executable, "-m", "lqray", "status", "sweep.yaml"]
    shown = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True)
    assert "8 finished" in shown.stdout, shown.stderr
    client = MlflowClient(database)
    assert (tmp_path / "storage/lqray-artifacts/sweep").is_dir()
    for one in runs.values():
        kept = client.download_artifacts(one.info.run_id, "experiment.yaml")
        assert "lqray:***@127" in Path(kept).read_text()
        assert not any("secret-word" in value for value in (one.data.tags | one.data.params).values())
    assert "secret-word" not in str(client.get_experiment_by_name("sweep").tags)
    untold(tmp_path, "secret-word")


@pytest.mark.slow
def test_a_server_on_postgresql_restarted_in_the_middle(tmp_path):
    with postgresql() as uri:
        port = free_port()
        server = serve(tmp_path, port, uri)
        path = write(tmp_path, 400, f"http://127.0.0.1:{port}", TEXT.replace("[1, 2, 3, 4, 5, 6, 7, 8]", "[1, 2]"))
        process = start(path, "--launcher", "inline")
        try:
            with killing(process):
                wait_for(path, lambda: checkpointed(path, 1))
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                server = serve(tmp_path, port, uri)
                assert process.wait(300) == 0, output(path)
            # Reports read the tables where they can, and give the same as through the server.
            reports = [
                CliRunner()
                .invoke(main, ["report", "sweep", "--format", "csv", "--target", "0.5", "--uri", store])
                .stdout
                for store in (uri, f"http://127.0.0.1:{port}")
            ]
            assert reports[0] == reports[1]
            assert "qsgd_inf,2," in reports[0]
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        assert {one.info.status for one in recorded(uri).values()} == {"FINISHED"}
        for of_run in histories(uri).values():
            assert [step for step, _ in of_run["train/loss"]] == list(range(1, 401))
