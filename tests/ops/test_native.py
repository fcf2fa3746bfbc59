"""Which native library serves a working tree that brings none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lqray import ops

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(ops.loaded.path is None, reason=f"no native library here: {ops.loaded.reason}")
def test_a_submitted_tree_uses_the_installed_library_of_the_same_sources_only(tmp_path):
    """As in a job on a cluster: sources of the job's own, and an lqray that was installed and built there."""
    submitted, installed, site = tmp_path / "submitted", tmp_path / "installed", tmp_path / "site/lqray-0.1.0.dist-info"
    shutil.copytree(ROOT / "lqray", submitted / "lqray", ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    for tree in (submitted, installed):
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        shutil.copy(ROOT / "setup.py", tree)
    (installed / "lqray").mkdir()
    library = shutil.copy(ops.loaded.path, installed / "lqray")
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: lqray\nVersion: 0.1.0\n")
    (site / "direct_url.json").write_text(f'{{"dir_info": {{"editable": true}}, "url": "{installed.as_uri()}"}}')

    def loaded() -> str:
        code = "import lqray.ops as ops; print(ops.__file__, ops.loaded.path, ops.loaded.reason)"
        path = f"{submitted}{os.pathsep}{site.parent}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LQRAY_NATIVE")}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    same = loaded()
    assert str(submitted) in same.split()[0]
    assert same.split()[1] == str(library)
    with (submitted / "csrc/rounding.h").open("a") as stream:
        stream.write("\n")
    other = loaded()
    assert other.split()[1] == "None"
    assert f"that of {installed} is of other sources" in other
