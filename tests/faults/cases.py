"""What must hold, whichever act of a sweep fails.

The sweep ends within seconds: with success, and then nothing at all is different from an undisturbed one, or otherwise
with a word of ours. A plain second run then gives the points and the bits of an undisturbed one, each point once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import create_engine, text

from lqray.training.checkpoint_file import CorruptCheckpointError, read_checkpoint
from tests.faults.acts import Acts, Fault

SWEEP = """
name: tiny
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  workers: 2
  schedule: {iterations: 30, batch_size: 16, evaluate_every: 10}
  quantizer: {bits: 3, bucket_size: 64, components: 5, update_at: [0, 10]}
sweep:
  - matrix: {quantizer.method: [full_precision, alq]}
resources: {processes: 1}
storage: {checkpoint_every: 10}
"""
_RUN = ["run", "tiny.yaml", "--launcher", "inline"]
_SECONDS_TO_VANISH = 20.0
# Of the tests' own making, or what a process that was killed cannot help.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|Segmentation fault")


@dataclass(frozen=True)
class Result:
    """What a sweep left: of each trial its status, its parameters, its points by metric (times and the machine's
    figures apart), its last checkpoint, and the names of its artifacts, in whatever folder (what is drawn in spare time
    apart)."""

    statuses: dict[str, list[str]]
    points: dict[str, dict[str, list[tuple[int, float | str]]]]
    checkpoints: dict[str, Any]
    artifacts: dict[str, list[str]]
    folders: dict[str, str]
    params: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Outcome:
    """Of one case. wrong: what should not be; nothing when all is well."""

    fault: Fault
    act: str
    code: int | None
    wrong: list[str] = field(default_factory=list)
    output: str = ""

    def __str__(self) -> str:
        head = f"{self.fault.mode} {self.fault.number} ({self.act}): exit {self.code}"
        return head + "".join(f"\n    {one}" for one in self.wrong)


class Sweeps:
    """Runs cases below one folder; keeps the server and the undisturbed result. Use as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sweep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "server.txt").open("w"),
            text=True,
            cwd=Path(__file__).parents[2],
            env={key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")},
        )
        assert self._server.stdout is not None
        ready = self._server.stdout.readline()
        assert ready == "ready\n", (self.folder / "server.txt").read_text()
        self._make_template()
        reference = self._fresh("undisturbed")
        code = self._run(reference, Fault())
        assert code == 0, Path(f"{reference}.output").read_text()
        self.acts = Acts.journal(reference)
        self.expected = read_result(_store(reference))
        assert set(map(str, self.expected.statuses.values())) == {"['FINISHED']"}, self.expected.statuses

    def __enter__(self) -> Sweeps:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)

    def case(self, *faults: Fault) -> Outcome:
        """Run the sweep with a fault, again with each further one, and then plainly."""
        name = "-".join(f"{fault.mode}{fault.number}" for fault in faults)
        folder = self._fresh(name)
        outcome = Outcome(faults[0], "not reached", None)
        for fault in faults:
            with _output(folder) as output:
                outcome.code = self._run(folder, fault)
            hit = [act for act in Acts.journal(folder) if act[4] != "none"]
            if hit:
                outcome.act = f"{hit[0][2]} {hit[0][3]}"
            outcome.output += output[0]
            self._check_end(outcome, output[0], folder, bool(hit))
            self._forget(folder)
        with _output(folder) as output:
            code = self._run(folder, Fault())
        outcome.output += f"\n--- again ---\n{output[0]}"
        if code != 0:
            outcome.wrong.append(f"the second run ended with {code}")
        outcome.wrong += [f"the second run: {one}" for one in _noise(output[0])]
        outcome.wrong += [f"after the second run: {one}" for one in self.differences(folder, outcome.output)]
        if not outcome.wrong:
            self._forget(folder)
            shutil.rmtree(folder)
            Path(f"{folder}.output").unlink()
        return outcome

    def undisturbed(self, name: str) -> Path:
        """A folder of that name with a sweep that ran without a fault."""
        folder = self._fresh(name)
        assert self._run(folder, Fault()) == 0
        return folder

    def _check_end(self, outcome: Outcome, output: str, folder: Path, hit: bool) -> None:
        killed = outcome.code == -9
        if outcome.code is None:
            outcome.wrong.append("it did not end")
        elif outcome.code < 0 and not killed:
            outcome.wrong.append(f"it ended by signal {-outcome.code}")
        outcome.wrong += _noise(output)
        if outcome.code == 0:
            outcome.wrong += [f"after success: {one}" for one in self.differences(folder, outcome.output)]
        elif not killed and outcome.code is not None and not re.search(r"Error: |failed|: left|interrupted", output):
            outcome.wrong.append("not a word why")
        deadline = time.monotonic() + _SECONDS_TO_VANISH
        while (left := {one for one in Acts.processes(folder) if Path(f"/proc/{one}").exists()}) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.02)
        if left:
            outcome.wrong.append(f"processes that are left: {left}")
        if outcome.code == 0 and not hit and outcome.fault.mode != "none":
            outcome.act = "not reached"

    def differences(self, folder: Path, said: str = "") -> list[str]:
        """From the undisturbed sweep, in words. said: by lqray; artifacts are secondary, and a word is enough."""
        found = differences(self.expected, read_result(_store(folder)))
        return [one for one in found if "artifacts" not in one] if "artifacts are missing in" in said else found

    def _fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        self._forget(folder)
        shutil.copytree(self.folder / "template", folder)
        return folder

    def _forget(self, folder: Path) -> None:
        for left in folder.parent.glob(f"{folder.name}.acts*"):
            left.unlink()

    def _run(self, folder: Path, fault: Fault) -> int | None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"folder": str(folder), "mode": fault.mode, "number": fault.number, "arguments": _RUN}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code: int | None = json.loads(self._server.stdout.readline())
        return code

    def _make_template(self) -> None:
        """A folder with the file and a store without runs: to make its tables takes longer than the sweep."""
        template = self.folder / "template"
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir()
        (template / "tiny.yaml").write_text(SWEEP)
        script = "from lqray.store.client import client_of; client_of('sqlite:///lqray.db').search_experiments()"
        subprocess.run([sys.executable, "-c", script], cwd=template, check=True, capture_output=True)


def _store(folder: Path) -> str:
    return f"sqlite:///{folder}/lqray.db"


@contextmanager
def _output(folder: Path) -> Iterator[list[str]]:
    """Yields a list that holds, after the context, what was printed within it."""
    file = Path(f"{folder}.output")
    before = file.stat().st_size if file.exists() else 0
    said: list[str] = []
    yield said
    said.append(file.read_bytes()[before:].decode(errors="replace"))


def _noise(output: str) -> list[str]:
    return ["a traceback was printed"] if _TRACEBACK.search(output) else []


def read_result(uri: str, experiment: str = "tiny") -> Result:
    """What the store of this address, and the folders that it names, hold of an experiment."""
    runs = text(
        "SELECT r.run_uuid, t.value, r.status, r.artifact_uri FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        "JOIN experiments e ON e.experiment_id = r.experiment_id "
        "WHERE t.key = 'lqray.trial_name' AND r.lifecycle_stage = 'active' AND e.name = :name ORDER BY t.value"
    )
    metrics = text("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = :run ORDER BY key, step")
    params = text("SELECT key, value FROM params WHERE run_uuid = :run")
    folder = text("SELECT value FROM tags WHERE run_uuid = :run AND key = 'lqray.folder'")
    found = Result({}, {}, {}, {}, {})
    engine = create_engine(uri)
    try:
        with engine.connect() as store:
            for run, name, status, artifacts in store.execute(runs, {"name": experiment}).fetchall():
                found.statuses.setdefault(name, []).append(status)
                found.params[name] = dict(store.execute(params, {"run": run}).fetchall())
                mine = found.points.setdefault(name, {})
                for key, step, value, is_nan in store.execute(metrics, {"run": run}):
                    if not key.startswith("system/"):
                        shown = 0.0 if key.startswith("time/") else "NaN" if is_nan else value
                        mine.setdefault(key, []).append((step, shown))
                where = store.execute(folder, {"run": run}).scalar()
                found.folders[name] = str(where)
                files = sorted(Path(where).glob("step-*.pt")) if where else []
                found.checkpoints[name] = _checkpoint(files[-1]) if files else None
                kept = Path(str(artifacts).removeprefix("file://"))
                names = {one.name for one in kept.rglob("*") if one.is_file()}
                found.artifacts[name] = sorted(names - {"density.png"})
    finally:
        engine.dispose()
    return found


def _checkpoint(file: Path) -> dict[str, Any] | None:
    """None where it is damaged, which differs from every other."""
    try:
        return read_checkpoint(file, torch.device("cpu"))
    except CorruptCheckpointError:
        return None


def differences(expected: Result, found: Result) -> list[str]:
    """In words."""
    said = [
        f"{name} is {found.statuses.get(name, 'not there')}, not {status}"
        for name, status in expected.statuses.items()
        if found.statuses.get(name) != status
    ]
    for name, metrics in expected.points.items():
        mine = found.points.get(name, {})
        for key in sorted(set(metrics) | set(mine)):
            if metrics.get(key, []) != mine.get(key, []):
                said.append(f"{name}: {key} is {_short(mine.get(key, []))}, not {_short(metrics.get(key, []))}")
    said += [
        f"{name}: its parameters are {found.params.get(name)}, not {params}"
        for name, params in expected.params.items()
        if found.params.get(name) != params
    ]
    for name, checkpoint in expected.checkpoints.items():
        mine = found.checkpoints.get(name)
        if mine is None or not _equal(_bits(checkpoint), _bits(mine)):
            said.append(f"{name}: its last checkpoint differs")
    for name, kept in expected.artifacts.items():  # a try that failed leaves a traceback, too
        if lacking := sorted(set(kept) - set(found.artifacts.get(name, []))):
            said.append(f"{name}: of its artifacts these are not there: {lacking}")
    return said


def _short(points: Sequence[tuple[int, float | str]]) -> str:
    return f"{len(points)} points {list(points[:3])}...{list(points[-2:])}"


def _bits(checkpoint: dict[str, Any]) -> dict[str, Any]:
    shared = {key: value for key, value in checkpoint["shared"].items() if key != "seconds"}
    return {"iteration": checkpoint["iteration"], "shared": shared, "ranks": checkpoint["ranks"]}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and _bytes(one) == _bytes(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other) or (one != one and other != other)  # NaN


def _bytes(tensor: torch.Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
