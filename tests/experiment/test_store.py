"""Addresses of stores and folders: variables, homes, and what is no address."""

from pathlib import Path

import pytest

from lqray.experiment.options.data import FileOptions
from lqray.experiment.schema import Storage, Tracking
from lqray.experiment.store import StorageError, absolute_store, sqlite_path, storage_address
from lqray.orchestration.remote.job_checks import UnfitForJobsError, check_lasting
from lqray.training.files import MissingDataError, folder


@pytest.fixture(autouse=True)
def _scratch(monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.delenv("LQRAY_STORAGE", raising=False)


def test_variables_of_the_environment_are_expanded(tmp_path, monkeypatch):
    assert storage_address("$SCRATCH/x") == storage_address("${SCRATCH}/x") == str(tmp_path / "x")
    assert storage_address("s3://bucket/${SCRATCH}") == f"s3://bucket/{tmp_path}"
    assert absolute_store("sqlite:///$SCRATCH/x.db") == f"sqlite:///{tmp_path}/x.db"
    assert folder(FileOptions(name="mnist", root="$SCRATCH/data")).path == tmp_path / "data"
    monkeypatch.setenv("LQRAY_STORAGE", "$SCRATCH/y")
    assert storage_address(None) == str(tmp_path / "y")


@pytest.mark.parametrize("wrong", ["$NOWHERE/x", "${NOWHERE}/x", "a/$NOWHERE", "~nobody-is-called-so/x", "a\nb"])
def test_what_cannot_be_expanded_is_refused_by_name(wrong):
    for found in (lambda: storage_address(wrong), lambda: absolute_store(f"sqlite:///{wrong}")):
        with pytest.raises(StorageError, match=r"NOWHERE|nobody-is-called-so|one line") as error:
            found()
        assert "allowed" in str(error.value)
    if "\n" not in wrong:
        with pytest.raises(MissingDataError, match=r"data\.root"):
            folder(FileOptions(name="mnist", root=wrong))


def test_a_password_may_hold_a_dollar():
    uri = "postgresql://me:pa$NOWHERE@host/db"
    assert absolute_store(uri) == uri


def test_a_folder_called_like_a_variable_keeps_its_store(tmp_path, monkeypatch):
    (tmp_path / "a$SCRATCH").mkdir()
    monkeypatch.chdir(tmp_path / "a$SCRATCH")
    uri = absolute_store("sqlite:///x.db")
    assert absolute_store(uri) == uri
    assert sqlite_path(uri) == Path.cwd() / "x.db"


def test_what_a_job_writes_below_a_variable_lasts():
    uri = Tracking(uri="sqlite:///$NOWHERE/x.db")
    check_lasting(uri, Storage(folder="$NOWHERE/x"), here=False)
    with pytest.raises(UnfitForJobsError, match=r"storage\.folder"):
        check_lasting(uri, Storage(folder="x/$NOWHERE"), here=False)
