"""Whether an experiment can be recorded in, before anything is: the trash, and a project that was moved or copied."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.store import tables
from lqray.store.errors import StoreError
from lqray.store.experiments import check_usable, relocate, stored_experiment
from lqray.store.launches import open_launch

YAML = """
name: T
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 20, batch_size: 16}
  quantizer: {method: full_precision}
"""


@pytest.fixture
def project(tmp_path):
    """A store with one run and its artifact, in a folder whose name has to be escaped in URIs."""
    folder = tmp_path / "old [1]"
    folder.mkdir()
    (folder / "T.yaml").write_text(YAML)
    store = f"sqlite:///{folder}/lqray.db"
    launch = open_launch(store, "T", "T.yaml", "", {}, (), str(folder / "lqray-storage"))
    client = MlflowClient(store)
    run = client.create_run(launch.experiment_id)
    client.log_text(run.info.run_id, "what was measured", "notes.txt")
    client.create_logged_model(launch.experiment_id)
    return folder


def store_of(folder) -> str:
    return f"sqlite:///{folder}/lqray.db"


def artifact(folder) -> str:
    """Of the run, read from where the store says it is."""
    client = MlflowClient(store_of(folder))
    (run,) = client.search_runs([client.get_experiment_by_name("T").experiment_id])
    assert run.info.artifact_uri.startswith((folder / "lqray-artifacts" / "T").as_uri())
    return Path(client.download_artifacts(run.info.run_id, "notes.txt")).read_text()


@pytest.mark.parametrize("through", ["tables", "api"])
def test_a_store_in_its_place_is_used(project, through, monkeypatch):
    if through == "api":
        monkeypatch.setattr(tables, "REVISIONS", frozenset())
    check_usable(store_of(project), "T")
    check_usable(store_of(project), "another")
    check_usable(f"sqlite:///{project}/none.db", "T")
    assert not (project / "none.db").exists()
    assert relocate_or_word(project, through) == []


def relocate_or_word(project, through):
    if through == "tables":
        return relocate(store_of(project))
    with pytest.raises(StoreError, match="a version of MLflow that this lqray cannot correct"):
        relocate(store_of(project))
    return []


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("through", ["tables", "api"])
def test_a_project_that_was_moved_or_copied_is_refused_until_a_command_corrects_it(
    project, tmp_path, how, through, monkeypatch
):
    new = tmp_path / "new [2] it's"
    (shutil.move if how == "moved" else shutil.copytree)(project, new)
    with monkeypatch.context() as patched:
        if through == "api":
            patched.setattr(tables, "REVISIONS", frozenset())
        with pytest.raises(StoreError, match=r"moved or copied.*lqray relocate --uri") as raised:
            check_usable(store_of(new), "T")
    monkeypatch.chdir(new)
    for dry in ([], ["--dry-run"]):
        refused = CliRunner().invoke(main, ["run", "T.yaml", "--launcher", "inline", *dry])
        assert refused.exit_code == 2
        assert "lqray relocate --uri" in refused.output
    assert not (new / "lqray-storage").exists()
    command, *arguments = shlex.split(str(raised.value).split("`")[1])  # as a shell reads what was printed
    assert command == "lqray"
    corrected = CliRunner().invoke(main, arguments)
    assert corrected.output == "Corrected: T\n"
    check_usable(store_of(new), "T")
    assert artifact(new) == "what was measured"
    client = MlflowClient(store_of(new))
    (model,) = client.search_logged_models([client.get_experiment_by_name("T").experiment_id])
    assert model.artifact_location.startswith((new / "lqray-artifacts").as_uri())
    if how == "copied":
        check_usable(store_of(project), "T")
        assert artifact(project) == "what was measured"


def test_artifacts_that_were_left_behind_have_to_come_first(project, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(project / "lqray.db", new)
    with pytest.raises(StoreError, match=r"still in .*old \[1\]/lqray-artifacts/T: nothing was changed"):
        relocate(store_of(new))
    with pytest.raises(StoreError, match="moved or copied"):
        check_usable(store_of(new), "T")


def test_a_place_that_its_user_chose_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    store = store_of(tmp_path / "a")
    open_launch(store, "T", "T.yaml", "", {}, (), str(tmp_path))
    client = MlflowClient(store)
    client.create_experiment("chosen", artifact_location="s3://bucket/lqray-artifacts/chosen")
    client.create_experiment("another", artifact_location=str(tmp_path / "elsewhere"))
    for name in ("chosen", "another"):
        check_usable(store, name)
    assert relocate(store) == []


def test_another_path_to_the_same_folder_is_the_same_place(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    check_usable(store_of(tmp_path / "link"), "T")


def test_a_dry_run_and_a_run_say_the_same_of_an_experiment_in_the_trash(project, monkeypatch):
    client = MlflowClient(store_of(project))
    client.delete_experiment(client.get_experiment_by_name("T").experiment_id)
    monkeypatch.chdir(project)
    for dry in ([], ["--dry-run"]):
        refused = CliRunner().invoke(main, ["run", "T.yaml", "--launcher", "inline", *dry])
        assert refused.exit_code == 2
        assert "is in MLflow's trash" in refused.output
    assert stored_experiment(store_of(project), "T").trashed
    subprocess.run(refused.output.split("`")[1], shell=True, check=True, capture_output=True)
    check_usable(store_of(project), "T")
    assert artifact(project) == "what was measured"
