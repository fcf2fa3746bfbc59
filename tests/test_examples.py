"""The examples, copied out of the tree and used as their READMEs say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ROOT = EXAMPLES.parent


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.processes
def test_a_method_of_ones_own(tmp_path):
    folder = tmp_path / "own-method"
    shutil.copytree(EXAMPLES / "own-method", folder)
    assert " passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider")
    listed = run(folder, "lqray", "expand", "low_rank.yaml")
    assert listed.count("low_rank:METHOD") >= 2
    one = folder / "one.yaml"
    text = (folder / "low_rank.yaml").read_text().replace("workers: 2", "workers: 2\n  seed: 3")
    one.write_text(text[: text.index("sweep:")] + "  quantizer: {method: 'low_rank:METHOD', options: {rank: 4}}\n")
    printed = run(folder, "lqray", "train", "one.yaml")
    assert "accuracy" in printed
