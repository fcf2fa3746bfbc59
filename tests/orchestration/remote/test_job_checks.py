"""What is refused before a job is submitted: what would be lost, and passwords."""

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.schema import Storage, Tracking
from lqray.orchestration.remote.job_checks import UnfitForJobsError, check_lasting
from tests.testing.jobs import experiment


@pytest.mark.parametrize(
    ("tracking", "storage", "environment", "lost"),
    [
        ({}, {}, {}, ["tracking.uri", "storage.folder"]),
        ({"uri": "http://server"}, {"folder": "/shared"}, {}, []),
        ({"uri": "sqlite:////home/lqray.db"}, {"folder": "s3://bucket/x"}, {}, []),
        ({"uri": "sqlite:///lqray.db"}, {"folder": "here"}, {"MLFLOW_TRACKING_URI": "http://server"}, ["tracking.uri"]),
        ({}, {"folder": "/shared"}, {"MLFLOW_TRACKING_URI": "http://server"}, []),
        ({}, {}, {"MLFLOW_TRACKING_URI": "http://server", "LQRAY_STORAGE": "/shared"}, []),
    ],
)
def test_a_job_writes_nothing_where_ray_deletes_it(monkeypatch, tracking, storage, environment, lost):
    for name in ("MLFLOW_TRACKING_URI", "LQRAY_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sections = Tracking.model_validate(tracking), Storage.model_validate(storage)
    if not lost:
        check_lasting(*sections, here=True)
        return
    with pytest.raises(UnfitForJobsError) as error:
        check_lasting(*sections, here=True)
    for key in lost:
        assert key in str(error.value)
    said = {"uri": "tracking.uri", "folder": "storage.folder"}
    if not any(said[key] in lost for key in {**tracking, **storage}):
        check_lasting(*sections, here=False)  # what the cluster's environment says is not known here


@pytest.mark.parametrize("where", ["file", "option"])
def test_no_password_goes_into_a_job(tmp_path, where):
    uri = "postgresql://ada:hidden@server/mlflow"
    path = experiment(tmp_path, 5)
    if where == "file":
        path.write_text(path.read_text() + f"tracking: {{uri: '{uri}'}}\n")
    options = ["--set", f"tracking.uri={uri}"] if where == "option" else []
    refused = CliRunner().invoke(main, ["submit", str(path), *options])
    assert refused.exit_code == 2
    assert "MLFLOW_TRACKING_URI" in refused.stderr
    assert "hidden" not in refused.output
