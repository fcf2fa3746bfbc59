"""A seeded sample of the acts of a sweep, each failing in one way; `python -m tests.faults` runs all of them."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import threading
from pathlib import Path

import pytest
import torch

from lqray.training.checkpoint_file import read_checkpoint, written_form
from tests.faults.acts import MODES, PATIENCE, Acts, Fault
from tests.faults.cases import Sweeps

_CASES = 20
_RANDOM = random.Random(20261126)
_SAMPLE = [
    (MODES[index % len(MODES)], (index // len(MODES) + _RANDOM.random()) / (_CASES // len(MODES)))
    for index in range(_CASES)
]  # every mode, spread evenly over the sweep


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    with Sweeps(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.mark.processes
@pytest.mark.parametrize(("mode", "place"), _SAMPLE, ids=[f"{mode}-{place:.2f}" for mode, place in _SAMPLE])
def test_a_fault_costs_nothing_that_is_recorded(sweeps, mode, place):
    outcome = sweeps.case(Fault(mode, 1 + int(place * len(sweeps.acts))))
    assert not outcome.wrong, f"{outcome}\n{outcome.output}"


@pytest.mark.processes
def test_where_nothing_fails_a_machine_that_has_much_to_do_is_waited_for(sweeps):
    """The process that delivers metrics has a low priority: beside other work it may not have its turn for seconds."""
    with _held_up(sweeps.folder / "starved") as held_up:
        folder = sweeps.undisturbed("starved")
    assert held_up
    assert sweeps.differences(folder) == []
    assert "again in" not in Path(f"{folder}.output").read_text()


@contextlib.contextmanager
def _held_up(folder):
    """Stops, for longer than a sweep in which something fails would wait, the process that delivers a sweep's metrics,
    once it has begun to; yields a list of those that were."""
    over, stopped = threading.Event(), []

    def hold_up():
        while not over.wait(0.005) and not stopped:
            acts = [(int(pid), name) for _, pid, _, name, *_ in Acts.journal(folder)]
            stopped.extend(pid for pid, name in acts[1:] if name == "log_batch" and pid != acts[0][0])
        for pid in set(stopped):
            os.kill(pid, signal.SIGSTOP)
            over.wait(2 * PATIENCE)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


def _in_store(statement: str):
    def change(folder):
        with contextlib.closing(sqlite3.connect(folder / "lqray.db")) as store, store:
            assert store.execute(statement).rowcount

    return change


def _a_tensor(state):
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    if isinstance(state, torch.Tensor) and state.is_floating_point() and state.numel():
        return state
    return next((found for part in parts if (found := _a_tensor(part)) is not None), None)


def _in_checkpoint(folder):
    newest = sorted(folder.glob("**/step-*.pt"))[-1]
    written = read_checkpoint(newest, torch.device("cpu"))
    _a_tensor(written["shared"]).view(-1)[0] += 1e-6
    newest.write_bytes(b"".join(written_form(written)))


def _in_artifacts(folder):
    next(file for file in folder.glob("lqray-artifacts/**/*") if file.is_file()).unlink()


CHANGES = {
    "a point lost": _in_store("DELETE FROM metrics WHERE rowid = (SELECT rowid FROM metrics WHERE key = 'train/loss')"),
    "a point twice": _in_store(
        "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
        "WHERE key = 'train/loss' LIMIT 1"
    ),
    "a value of other bits": _in_store(
        "UPDATE metrics SET value = value * 1.0000000000000002 WHERE key = 'test/loss' AND value > 0"
    ),
    "a parameter": _in_store("DELETE FROM params WHERE rowid = (SELECT rowid FROM params WHERE key = 'optimizer.lr')"),
    "a status": _in_store("UPDATE runs SET status = 'RUNNING' WHERE rowid = (SELECT max(rowid) FROM runs)"),
    "a run deleted": _in_store(
        "UPDATE runs SET lifecycle_stage = 'deleted' WHERE rowid = (SELECT max(rowid) FROM runs)"
    ),
    "a checkpoint": _in_checkpoint,
    "an artifact": _in_artifacts,
}


@pytest.mark.processes
def test_an_undisturbed_sweep_is_found_to_be_right_and_a_changed_one_not(sweeps):
    """The proof can fail: whatever a fault might cost is seen."""
    folder = sweeps.undisturbed("another")
    assert sweeps.differences(folder) == []
    for what, change in CHANGES.items():
        changed = folder.parent / "changed"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(folder, changed)
        with contextlib.closing(sqlite3.connect(changed / "lqray.db")) as store, store:  # what it names lies there, too
            for table, column in (("tags", "value"), ("runs", "artifact_uri")):
                store.execute(f"UPDATE {table} SET {column} = replace({column}, '{folder}', '{changed}')")
        assert sweeps.differences(changed) == []
        change(changed)
        assert sweeps.differences(changed), what
