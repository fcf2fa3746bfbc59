"""Sweeps of many short trials under random faults, one every ten seconds: `python -m tests.soak`, or `make soak`.

Launches are started again and again, with Ray and without, until every trial is FINISHED. Then every trial must have
the points and the bits of an undisturbed sweep, each point once, and nothing of all those launches may be left: no
process, no shared memory, no temporary file, and no traceback on any terminal.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sqlalchemy import create_engine, text

from tests.faults.cases import differences, read_result
from tests.testing import postgresql
from tests.testing.sweeps import marked

_SWEEP = """
name: soak
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  workers: 2
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 50}
  quantizer: {bits: 3, bucket_size: 64, components: 5, update_at: [0, 10], update_every: 100}
sweep:
  - matrix: {quantizer.method: [qsgd_inf, alq], seed: [SEEDS]}
resources: {processes: 1}
tracking: {uri: "URI"}
storage: {folder: storage, checkpoint_every: 50}
"""
_LAUNCHERS = ("warm", "isolated", "inline")
_LAST_SECONDS = 900.0


class Soak:
    """One store, one folder, one sequence of launches and faults."""

    def __init__(self, folder: Path, uri: str, trials: int, iterations: int, server: postgresql.Server | None) -> None:
        self.folder, self.uri, self.server = folder, uri, server
        seeds = ", ".join(str(seed) for seed in range(1, trials // 2 + 1))
        self._text = _SWEEP.replace("SEEDS", seeds).replace("ITERATIONS", str(iterations))
        folder.mkdir(parents=True)
        (folder / "tmp").mkdir()
        (folder / "soak.yaml").write_text(self._text.replace("URI", uri))
        self.launch: subprocess.Popen[bytes] | None = None
        self.launches = 0
        self.codes: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.damaged: set[str] = set()

    def undisturbed(self) -> str:
        """The address of a store with the same sweep, run without a fault."""
        place = self.folder.parent / "undisturbed"
        if not (place / "lqray.db").exists():
            place.mkdir()
            uri = f"sqlite:///{place}/lqray.db"
            (place / "soak.yaml").write_text(self._text.replace("URI", uri))
            command = [sys.executable, "-m", "lqray", "run", "soak.yaml", "--launcher", "inline"]
            with (place / "output.txt").open("wb") as output:
                done = subprocess.run(command, cwd=place, stdout=output, stderr=subprocess.STDOUT)
            assert done.returncode == 0, (place / "output.txt").read_text()
        return f"sqlite:///{place}/lqray.db"

    def begin(self, launcher: str) -> None:
        """A launch; its children carry the folder as a mark in their environment."""
        self.launches += 1
        output = (self.folder / f"output-{self.launches:03d}-{launcher}.txt").open("wb")
        environment = os.environ | {
            "LQRAY_TEST_MARK": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "RAY_ADDRESS": "local",
        }
        command = [sys.executable, "-m", "lqray", "run", "soak.yaml", "--launcher", launcher]
        self.launch = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        output.close()

    def over(self) -> bool:
        """Whether the last launch ended; how, is counted."""
        if self.launch is None:
            return True
        code = self.launch.poll()
        if code is None:
            return False
        self.codes[str(code)] += 1
        self.launch = None
        return True

    # Faults, each by its name. False where there is nothing to do it to.

    def kill_launcher(self) -> bool:
        """SIGKILL."""
        if self.launch is None:
            return False
        self.launch.kill()
        return True

    def kill_driver(self) -> bool:
        """SIGKILL of the actor that drives a trial."""
        return self._kill("ray::TrialDriver")

    def kill_raylet(self) -> bool:
        """SIGKILL."""
        return self._kill("raylet/raylet")

    def kill_worker(self) -> bool:
        """SIGKILL of a process that trains."""
        return self._kill("ray::RayTrainWorker") or self._kill("--multiprocessing-fork")

    def kill_metric_writer(self) -> bool:
        """SIGKILL of the launcher's own processes."""
        return self._kill("--multiprocessing-fork")

    def kill_server(self) -> bool:
        """SIGKILL of the database's; started again after three seconds."""
        if self.server is None:
            return False
        self.server.kill()

        def again() -> None:
            assert self.server is not None
            for _ in range(20):
                time.sleep(3.0)
                with suppress(AssertionError):
                    self.server.start()
                    return

        threading.Thread(target=again).start()
        return True

    def stall_launcher(self) -> bool:
        """SIGSTOP for 40 seconds, after which its claims may be others'. Another launch takes its place."""
        launch = self.launch
        if launch is None:
            return False
        launch.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            time.sleep(40.0)
            launch.send_signal(signal.SIGCONT)

        threading.Thread(target=go_on).start()
        return True

    def lock_store(self) -> bool:
        """For 20 seconds nobody else can write."""
        threading.Thread(target=_locked, args=(self.uri, 20.0)).start()
        return True

    def fill_artifacts(self) -> bool:
        """For ten seconds the folder of artifacts is full; a folder of its own device only."""
        place = next(self.folder.glob("**/lqray-artifacts"), None)
        if place is None or not os.path.ismount(place):
            return False

        def full() -> None:
            filler = place / "filler"
            with suppress(OSError), filler.open("wb") as stream:
                while True:
                    stream.write(bytes(1 << 16))
                    stream.flush()
            time.sleep(10.0)
            filler.unlink(missing_ok=True)

        threading.Thread(target=full).start()
        return True

    def damage_checkpoint(self) -> bool:
        """The newest of all is cut to half."""
        files = list(self.folder.glob("storage/soak/*/step-*.pt"))
        if not files:
            return False
        with suppress(OSError):
            newest = max(files, key=lambda file: file.stat().st_mtime)
            os.truncate(newest, newest.stat().st_size // 2)
            self.damaged.add(newest.parent.name)
        return True

    def _kill(self, name: str) -> bool:
        found = sorted(marked(self.folder, name))
        if found:
            with suppress(ProcessLookupError):
                os.kill(found[len(found) // 2], signal.SIGKILL)
        return bool(found)


FAULTS = (
    *("kill_launcher", "kill_driver", "kill_raylet", "kill_worker", "kill_metric_writer", "kill_server"),
    *("stall_launcher", "lock_store", "fill_artifacts", "damage_checkpoint"),
)


def _locked(uri: str, seconds: float) -> None:
    engine = create_engine(uri)
    lock = "BEGIN EXCLUSIVE" if uri.startswith("sqlite") else "LOCK TABLE runs, metrics, tags, params IN EXCLUSIVE MODE"
    with suppress(Exception), engine.connect() as store:  # no such table yet, or the server is away: no fault, then
        store.execute(text(lock))
        time.sleep(seconds)
    engine.dispose()


@contextmanager
def _small_device(place: Path) -> Iterator[bool]:
    """A folder of 64 MiB, where one may mount."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", place], check=True)


def endure(soak: Soak, minutes: float, pause: float, seed: int, say: Callable[[str], None]) -> list[str]:
    """Launch and disturb until the time is over, then launch until all is done; returns what is wrong."""
    randomly = random.Random(seed)
    began = time.monotonic()
    next_fault = began + pause
    while (now := time.monotonic()) - began < minutes * 60:
        if soak.over():
            if soak.codes and soak.codes.get("0"):
                break  # every trial is FINISHED
            soak.begin(randomly.choice(_LAUNCHERS))
        if now >= next_fault:
            next_fault += pause
            fault = randomly.choice(FAULTS)
            if getattr(soak, fault)():
                soak.done[fault] += 1
                say(f"{now - began:6.0f} s  {fault}")
            if fault == "stall_launcher":
                soak.launch = None
        time.sleep(0.2)
    return _finish(soak, began, say) + _left(soak) + _results(soak)


def _finish(soak: Soak, began: float, say: Callable[[str], None]) -> list[str]:
    say(f"{time.monotonic() - began:6.0f} s  no more faults: {dict(soak.done)}")
    deadline = time.monotonic() + _LAST_SECONDS
    while time.monotonic() < deadline:
        if soak.over():
            if soak.codes.get("0"):
                return []
            soak.begin("warm")
        time.sleep(0.2)
    return [f"not all trials were finished {_LAST_SECONDS:g} s after the last fault"]


def _left(soak: Soak) -> list[str]:
    deadline = time.monotonic() + 120.0
    while (left := marked(soak.folder)) and time.monotonic() < deadline:
        time.sleep(1.0)
    wrong = [f"process {number} is left: {line[:120]}" for number, line in left.items()]
    left_files = [file for file in (soak.folder / "tmp").iterdir() if "torchinductor" not in file.name]  # torch's own
    wrong += [f"{file} is left" for file in left_files]
    for file in sorted(soak.folder.glob("output-*.txt")):
        said = file.read_text(errors="replace")
        if "Traceback (most recent call last)" in said or "Fatal Python error" in said:
            wrong.append(f"a traceback in {file}")
    return wrong


def _results(soak: Soak) -> list[str]:
    expected, found = read_result(soak.undisturbed(), "soak"), read_result(soak.uri, "soak")
    for name, folder in found.folders.items():
        if Path(folder).name in soak.damaged:  # perhaps after its trial had ended
            expected.checkpoints.pop(name, None)
    return differences(expected, found)


def main() -> int:
    """Exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], nargs="*", default=["sqlite", "postgresql"])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between two faults")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept afterwards")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lqray-soak-"))
    shared_memory = {one.name for one in Path("/dev/shm").iterdir()}
    with ExitStack() as stack:
        soaks = []
        for store in options.store:
            if store == "sqlite":
                soaks.append(_made(stack, folder / store, f"sqlite:///{folder / store}/lqray.db", options, None))
            elif why := postgresql.why_not():
                print(f"skipped: {why}")
            else:
                server = stack.enter_context(postgresql.server())
                soaks.append(_made(stack, folder / store, server.uri, options, server))
        began = time.monotonic()
        soaks[0].undisturbed()
        print(f"undisturbed: {options.trials} trials in {time.monotonic() - began:.0f} s, inline", flush=True)
        wrong = [one for soak in soaks for one in _soak(soak, options)]
    left = {one for one in {one.name for one in Path("/dev/shm").iterdir()} - shared_memory if "PostgreSQL" not in one}
    wrong += [f"/dev/shm/{one} is left" for one in sorted(left)]
    print("\n".join(wrong) or "nothing is wrong", flush=True)
    if not wrong and not options.folder:
        shutil.rmtree(folder)
    return int(bool(wrong))


def _made(
    stack: ExitStack, folder: Path, uri: str, options: argparse.Namespace, server: postgresql.Server | None
) -> Soak:
    soak = Soak(folder, uri, options.trials, options.iterations, server)
    artifacts = folder / ("lqray-artifacts" if server is None else "storage/lqray-artifacts")
    if not stack.enter_context(_small_device(artifacts)):
        print("no folder of its own device can be made here: artifacts are never full")
    return soak


def _soak(soak: Soak, options: argparse.Namespace) -> list[str]:
    def say(line: str) -> None:
        print(f"{soak.folder.name}: {line}", flush=True)

    wrong = endure(soak, options.minutes, options.pause, options.seed, say)
    say(f"{soak.launches} launches (exit codes {dict(soak.codes)}), {len(wrong)} wrong")
    return [f"{soak.folder.name}: {one}" for one in wrong]


if __name__ == "__main__":
    sys.exit(main())
