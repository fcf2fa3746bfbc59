"""What docs/start/own-script.md and examples/own-script show runs as it stands, under torchrun, outside the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own-script"

pytestmark = pytest.mark.processes


def torchrun(folder: Path, *arguments: str) -> str:
    """What two processes print in `folder`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_examples_of_the_document_run_one_after_the_other(tmp_path):
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "docs/start/own-script.md").read_text())
    assert len(blocks) == 6
    assert len([line for line in blocks[0].splitlines() if line]) == 5
    (tmp_path / "shown.py").write_text("\n".join([*blocks, "print('came to the end')", "exchange.finish()"]))
    assert torchrun(tmp_path, "shown.py").count("came to the end") == 2


def test_the_example_learns_and_goes_on_to_the_same_bits(tmp_path):
    ends = []
    for name, epochs in [("whole", ["4"]), ("parts", ["1", "4"])]:
        folder = shutil.copytree(EXAMPLE, tmp_path / name)
        for number in epochs:
            said = torchrun(folder, "train.py", "--epochs", number, "--checkpoint", "digits.pt")
        ends.append(torch.load(folder / "digits.pt", weights_only=True))
    for key, weights in ends[0]["network"].items():
        assert torch.equal(weights, ends[1]["network"][key])
    assert float(re.findall(r"accuracy (\S+),", said)[-1]) > 0.9
    assert float(re.findall(r"(\S+) times fewer", said)[-1]) > 10


def test_the_example_says_what_the_document_says():
    shown = (EXAMPLE / "README.md").read_text()
    assert (
        re.search(r"```python\n(.*)\n```", shown).group(1).replace("3, ", "arguments.bits, ")
        in (EXAMPLE / "train.py").read_text()
    )
