"""What is in the package that a job is sent."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from lqray.orchestration.remote.package import pack
from lqray.orchestration.remote.working_tree import PackageError
from lqray.orchestration.submitted import FILE


@pytest.fixture
def tree(tmp_path):
    """A git repository with one commit."""
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / ".gitignore").write_text("ignored*\n__pycache__\n")
    for name in ("kept.py", "deleted.py", "sub/deep.py"):
        (folder / name).write_text(name)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (folder / "deleted.py").unlink()
    (folder / "new.yaml").write_text("new")
    (folder / "ignored.yaml").write_text("ignored, but named")
    (folder / "ignored.db").write_text("ignored")
    return folder


def test_the_tree_is_what_git_tracks_or_does_not_ignore_and_the_experiments(tree, tmp_path):
    outside = tmp_path / "outside.yaml"
    outside.write_text("outside")
    package = pack([Path("../new.yaml"), Path("../ignored.yaml"), outside], tmp_path / "a.zip", tree / "sub")
    assert package.experiments == ("new.yaml", "ignored.yaml", "submitted/3/outside.yaml")
    expected = {".gitignore", "kept.py", "sub/deep.py", FILE, *package.experiments}
    assert set(zipfile.ZipFile(package.path).namelist()) == expected
    assert package.files == len(expected)

    os.utime(tree / "kept.py", (1, 1))
    again = pack([Path("../new.yaml"), Path("../ignored.yaml"), outside], tmp_path / "b.zip", tree / "sub")
    assert again.path.read_bytes() == package.path.read_bytes()


def test_without_git_the_tree_is_what_ray_would_take(tree, tmp_path):
    shutil.rmtree(tree / ".git")
    (tree / ".venv").mkdir()
    (tree / ".venv/python").write_text("")
    (tree / "_native.abi3.so").write_text("of another machine")
    package = pack([tree / "new.yaml"], tmp_path / "a.zip", tree)
    assert set(zipfile.ZipFile(package.path).namelist()) == {".gitignore", "kept.py", "sub/deep.py", "new.yaml", FILE}


def test_a_tree_too_large_names_its_largest_files(tree, tmp_path):
    (tree / "weights.bin").write_bytes(os.urandom(20000))
    with pytest.raises(PackageError) as error:
        pack([tree / "new.yaml"], tmp_path / "a.zip", tree, limit=10000)
    assert "weights.bin" in str(error.value).splitlines()[1]
    assert ".gitignore" in str(error.value)
    assert not (tmp_path / "a.zip").exists()
