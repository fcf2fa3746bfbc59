"""Parts of a user's own, as docs/guide/own-parts.md has them: its examples run under every launcher, anywhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lqray.experiment.grid import read_experiment
from lqray.training.export import NetworkError, read_network

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/guide/own-parts.md").read_text()
FILES = dict(re.findall(r"(?ms)^`(\S+)`\n```\w+\n(.*?)^```$", PAGE))
LINES = {"a model": "my_nets.py", "a dataset": "my_data.py", "an optimizer": "my_optimizers.py"} | {
    "a reduction": "my_reductions.py",
    "a metric": "my_metrics.py",
}


@pytest.fixture
def lab(tmp_path):
    """The page's files in lab/, and a folder to work in beside it."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "work").mkdir()
    for name, text in FILES.items():
        (tmp_path / "lab" / name).write_text(text)
    return tmp_path


def lqray(folder: Path, *arguments: str, code: int = 0, program: tuple[str, ...] = ("-m", "lqray")) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_passes_the_suites_that_it_names(lab):
    (suites,) = re.findall(r"(?ms)^```python\n(from lqray.testing import.*?)^```$", PAGE)
    without = "".join(line for line in suites.splitlines(True) if "my_lab" not in line)
    (lab / "lab" / "test_mine.py").write_text(without)
    assert " passed" in lqray(lab / "lab", "-q", "-p", "no:cacheprovider", program=("-m", "pytest"))


def test_the_table_counts_the_examples_lines():
    told = dict(re.findall(r"(?m)^\| (an? \w+) \| .* \| (\d+) \|$", PAGE))
    assert told == {what: str(len(FILES[name].splitlines())) for what, name in LINES.items()}


def test_expanding_imports_none_of_them(lab):
    for name in LINES.values():
        (lab / "lab" / name).write_text("raise SystemExit('imported')")
    assert len(list(read_experiment(lab / "lab" / "own.yaml").trials())) == 2
    assert "own: 2 trials" in lqray(lab / "work", "expand", "../lab/own.yaml")


def test_a_dry_run_imports_them_and_says_what_it_does_not_know(lab):
    said = lqray(lab / "work", "run", "../lab/own.yaml", "--dry-run")
    assert "2 would run" in said
    assert "2 trials whose bytes cannot be told" in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("width: [8, 16]", "width: [8, 0]"), ["model.options.width", "found:   0", "at least 1"]),
        (("my_nets:build", "my_nests:build"), ["no module my_nests", "PYTHONPATH"]),
        (("my_data:load", "my_data:lode"), ["did you mean 'load'?"]),
        (("my_reductions:Parade", "my_reductions:parade"), ["no attribute 'parade'"]),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(lab, change, told):
    file = lab / "lab" / "own.yaml"
    assert change[0] in FILES["own.yaml"]
    file.write_text(FILES["own.yaml"].replace(*change))
    said = lqray(lab / "work", "run", "../lab/own.yaml", code=2)
    for part in told:
        assert part in said
    assert "Traceback" not in said


def test_a_network_and_an_optimizer_that_do_not_fit_are_told_before_anything_runs(lab):
    (lab / "lab" / "narrow.py").write_text(
        "import torch\ndef build(options, shape, classes): return torch.nn.Linear(3, 3)"
    )
    text = FILES["own.yaml"].replace('"my_data:load", options: {classes: 3}', "digits")
    (lab / "lab" / "own.yaml").write_text(text.replace("my_nets:build", "narrow:build"))
    assert "does not take data of shape (1, 8, 8)" in lqray(lab / "work", "run", "../lab/own.yaml", code=2)
    (lab / "lab" / "own.yaml").write_text(text.replace("my_optimizers:build", "torch.optim:RMSprop"))
    assert "optimizer.options.bias_factor" in lqray(lab / "work", "run", "../lab/own.yaml", code=2)


def losses(folder: Path, name: str, *program: str) -> list[float]:
    lqray(
        folder, "train", "../lab/own.yaml", "--trial", "width8", "--metrics", name, program=program or ("-m", "lqray")
    )
    return [json.loads(line)["train/loss"] for line in (folder / name).read_text().splitlines() if "train/loss" in line]


@pytest.mark.processes
def test_they_train_alone_and_under_torchrun_to_the_bits_of_lqrays_reduction(lab):
    together = losses(lab / "work", "two.json", "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lqray")
    assert together[-1] < together[0]
    file = lab / "lab" / "own.yaml"
    file.write_text(FILES["own.yaml"].replace('"my_reductions:Parade", options: {check: true}', "all_gather"))
    assert losses(lab / "work", "one.json") == together


@pytest.mark.processes
def test_they_run_inline_from_another_folder(lab):
    said = lqray(lab / "work", "run", "../lab/own.yaml", "--launcher", "inline")
    assert "failed" not in said
    assert "margin" in lqray(lab / "work", "report", "own", "--metric", "margin")
    assert "2 finished;" in lqray(lab / "work", "run", "../lab/own.yaml", "--dry-run")
    (lab / "lab" / "unrelated.py").write_text("x = 1")
    (lab / "lab" / "my_nets.py").write_text(FILES["my_nets.py"] + "# other code\n")
    edited = lqray(lab / "work", "run", "../lab/own.yaml", "--dry-run")
    assert "2 finished (2 finished with other code: --rerun)" in edited
    assert "2 finished before (2 finished with other code: --rerun)" in lqray(lab / "work", "run", "../lab/own.yaml")
    lqray(lab / "work", "run", "../lab/own.yaml", "--launcher", "inline", "--rerun", "--only", "width8")
    assert "(1 finished with other code: --rerun)" in lqray(lab / "work", "run", "../lab/own.yaml", "--dry-run")
    assert "code of its parts" in lqray(lab / "work", "compare", "width8", "width16")


@pytest.mark.ray
@pytest.mark.parametrize("launcher", ["warm", pytest.param("isolated", marks=pytest.mark.slow)])
def test_they_run_on_ray_from_another_folder(lab, launcher):
    (lab / "work" / "my_nets.py").write_text(FILES["my_nets.py"])
    (lab / "lab" / "my_nets.py").unlink()  # one in the working directory, the others beside the file
    said = lqray(lab / "work", "run", "../lab/own.yaml", "--launcher", launcher)
    assert "failed" not in said
    assert "2 finished" in lqray(lab / "work", "run", "../lab/own.yaml", "--dry-run")


def test_a_recorded_models_reference_is_not_imported_unasked(tmp_path, monkeypatch):
    """Who may write to the store does not choose what is imported."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    described = {"form": 1, "model": {"name": "trap:build"}, "inputs": {"shape": [1, 8, 8], "classes": 10}}
    (tmp_path / "network.json").write_text(json.dumps(described))
    import torch

    torch.save({}, tmp_path / "state.pt")
    with pytest.raises(NetworkError, match="own_code=True"):
        read_network(tmp_path)
