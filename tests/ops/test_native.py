"""Which native library serves a working tree that brings none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lqray import ops
from lqray.kernels import libraries

ROOT = Path(__file__).resolve().parents[2]


NATIVE = pytest.mark.skipif(ops.loaded.path is None, reason=f"no native library here: {ops.loaded.reason}")
OTHER = "// other sources\n"


def loaded(folder: Path, *path: Path, **environment: str) -> str:
    """What a process says that has these places on its path: where its package is, which library, or why none."""
    code = "import lqray.ops as ops; print(ops.__file__, ops.loaded.path, ops.loaded.reason)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LQRAY_NATIVE")}
    kept |= {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(map(str, path))} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=kept, check=True, capture_output=True, text=True).stdout


def tree(folder: Path) -> Path:
    """A source tree without libraries."""
    shutil.copytree(ROOT / "lqray", folder / "lqray", ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "setup.py", folder)
    return folder


def site(folder: Path, package: Path, origin: str | None = None) -> Path:
    """Site-packages in which lqray is installed, with the folder of a package, or from a source tree (`pip -e`)."""
    info = folder / "lqray-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lqray\nVersion: 0.1.0\n")
    if origin:
        (info / "direct_url.json").write_text(f'{{"dir_info": {{"editable": true}}, "url": "{origin}"}}')
    package.mkdir(parents=True)
    shutil.copy(ops.loaded.path, package / "_native.abi3.so")
    return folder


@NATIVE
@pytest.mark.parametrize("editable", [True, False], ids=["source tree", "wheel"])
def test_a_submitted_tree_uses_the_installed_library_of_the_same_sources_only(tmp_path, editable):
    """As in a job on a cluster: sources of the job's own, and an lqray that was installed and built there."""
    submitted, installed = tree(tmp_path / "submitted"), tmp_path / ("installed" if editable else "site") / "lqray"
    place = site(tmp_path / "site", installed, installed.parent.as_uri() if editable else None)
    same = loaded(tmp_path, submitted, place).split()
    assert str(submitted) in same[0]
    assert same[1] == str(installed / "_native.abi3.so")
    with (submitted / "csrc/rounding.h").open("a") as stream:
        stream.write(OTHER)
    other = loaded(tmp_path, submitted, place)
    assert other.split()[1] == "None"
    assert f"that of {installed} is of other sources; `lqray build-native`" in other


@NATIVE
def test_a_library_of_other_sources_beside_the_package_is_not_used(tmp_path):
    """As after an edit of csrc/, or an upgrade in place."""
    here = tree(tmp_path / "tree")
    library = shutil.copy(str(ops.loaded.path), str(here / "lqray/_native.abi3.so"))
    assert loaded(tmp_path, here).split()[1] == library
    with (here / "csrc/bind_cpu.cpp").open("a") as stream:
        stream.write(OTHER)
    assert f"that of {here / 'lqray'} is of other sources" in loaded(tmp_path, here)
    Path(library).write_bytes(b"")
    assert f"that of {here / 'lqray'} is of other sources" in loaded(tmp_path, here)


@NATIVE
def test_the_users_cache_serves_where_the_package_has_none(tmp_path, monkeypatch):
    here = tree(tmp_path / "tree")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = libraries.cache_folder()
    cached.mkdir(parents=True)
    library = shutil.copy(str(ops.loaded.path), str(cached / "_native.abi3.so"))
    assert loaded(tmp_path, here).split()[1] == library
    if os.getuid() == 0:
        os.chown(cached, 12345, -1)
        assert loaded(tmp_path, here).split()[1] != library


def test_libraries_are_built_into_the_cache_where_the_package_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert libraries.destination() == ROOT / "lqray"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert libraries.destination() == libraries.cache_folder()
    assert libraries.cache_folder().parent == tmp_path / "lqray"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert libraries.cache_folder().parent == Path("~/.cache/lqray").expanduser()
