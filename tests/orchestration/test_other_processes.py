"""`lqray run` again, after `resources.processes` was changed in the file."""

import signal
import time
from pathlib import Path

import pytest
import torch

from lqray.quantization.regrouping import same
from lqray.training.checkpoint import read_checkpoint
from tests.orchestration.test_interrupted import start, statuses

pytestmark = pytest.mark.processes

STEPS = 500


def last(folder: Path) -> dict:
    (found,) = folder.glob(f"lqray-storage/T/*/step-{STEPS:010d}.pt")
    return read_checkpoint(found, torch.device("cpu"))


def run(folder: Path, processes: int, kill: bool = False) -> str:
    """Start it, with checkpoints every 20 steps; kill: SIGTERM as soon as there is one."""
    started = start(
        folder, STEPS, processes, stderr=(folder / "errors").open("a"), more="storage: {checkpoint_every: 20}"
    )
    while kill and not list(folder.glob("lqray-storage/T/*/step-*")):
        assert started.poll() is None, (folder / "errors").read_text()
        time.sleep(0.02)
    if kill:
        started.send_signal(signal.SIGTERM)
    said, _ = started.communicate(timeout=300)
    assert started.returncode == (143 if kill else 0), said + (folder / "errors").read_text()
    return said


def test_a_trial_goes_on_with_more_processes_and_ends_in_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run(cut, 1, kill=True)
    assert statuses(cut) == ["KILLED"]
    run(cut, 2)
    assert statuses(cut) == ["FINISHED"]
    run(whole, 1)
    assert [len(last(folder)["ranks"]) for folder in (whole, cut)] == [1, 2]
    assert same(last(cut)["shared"]["network"], last(whole)["shared"]["network"])
