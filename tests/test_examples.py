"""The examples, copied out of the tree and used as their READMEs say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ROOT = EXAMPLES.parent


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
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


@pytest.mark.processes
def test_a_model_and_a_dataset_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "own-model-and-data"
    shutil.copytree(EXAMPLES / "own-model-and-data", folder)
    assert " passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider")
    assert "spirals: 6 trials" in run(folder, "lqray", "expand", "spirals.yaml")
    options = ("--only", "full_precision*", "--set", "schedule.iterations=100", "--set", "resources.processes=1")
    command = ("lqray", "run", "own-model-and-data/spirals.yaml", *options)
    said = run(tmp_path, *command, "--launcher", "inline")
    reached = [float(one) for one in re.findall(r"finished in .* accuracy (\d+\.\d+)%", said)]
    assert len(reached) == 2, said
    assert min(reached) > 80
    assert "2 finished;" in run(tmp_path, *command, "--dry-run")
    with (folder / "blocks.py").open("a") as file:
        file.write("# edited\n")
    (folder / "spirals.csv").write_text((folder / "spirals.csv").read_text().replace(",0\n", ",1\n", 1))
    told = "(2 finished with other code, 2 finished with other data: --rerun)"
    assert told in " ".join(run(tmp_path, *command, "--dry-run").split())
