"""Workers look for parts where their launch does, on whatever machine they are."""

import sys

import pytest

from lqray.experiment import parts
from lqray.orchestration.worker.places import look_in


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_places", [])
    monkeypatch.setattr(parts, "_added", [])


def test_a_folder_of_a_job_is_that_of_this_machine(tmp_path, monkeypatch):
    """The head unpacked the job elsewhere."""
    mine = tmp_path / "session" / "working_dir_files" / "_ray_pkg_1"
    (mine / "lab").mkdir(parents=True)
    (mine / "lab" / "of_a_job.py").write_text("WHERE = 'here'")
    monkeypatch.syspath_prepend(mine)
    look_in(["/of/the/head/working_dir_files/_ray_pkg_1", "/of/the/head/working_dir_files/_ray_pkg_1/lab"])
    assert parts.places()[1:] == (str(mine), str(mine / "lab"))
    assert parts.load("models", "of_a_job:WHERE") == "here"


def test_other_folders_are_the_same_everywhere(tmp_path):
    look_in([str(tmp_path), "/absent/lab"])
    assert parts.places()[1:] == (str(tmp_path), "/absent/lab")
