"""Leases: of several launches on one store, which one runs a trial.

What makes a claim atomic is that a param of an MLflow run is written once: of two launches that write the same key,
MLflow refuses the second, whatever its backend. The keys are params of a run of its own for each experiment (its
board), found through a first run in the experiment `lqray-leases`.

    param  claim.TRIAL.N     holder: who claimed the trial for the N-th time
    tag    released.TRIAL    N: the last claim that was given back
    tag    alive.LAUNCH      a counter that its holder keeps increasing

A claim counts until it is released or its holder dies: at once, where the holder was a process of this machine that is
no more; elsewhere when its counter has stood still for HOLDER_PATIENCE seconds of this process's own clock, so that
clocks of machines need not agree.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqray.orchestration.store_access import client_of, patiently

HEARTBEAT_SECONDS = 5.0
HOLDER_PATIENCE = 30.0

_EXPERIMENT = "lqray-leases"
_NOTE = "Which launch runs which trial. Kept by lqray; may be deleted while no sweep runs."


@dataclass(frozen=True)
class Holder:
    """A launch: its process, told apart from later ones of that number by `born`, in its machine's process space."""

    launch: str
    host: str
    space: str
    pid: int
    born: str

    def __str__(self) -> str:
        return " ".join((self.launch, self.host, self.space, str(self.pid), self.born))

    @classmethod
    def parse(cls, text: str) -> Holder:
        """What `str` gives."""
        launch, host, space, pid, born = text.split(" ")
        return cls(launch, host, space, int(pid), born)

    @classmethod
    def this_process(cls, launch: str) -> Holder:
        """The process that calls."""
        return cls(launch, socket.gethostname(), _space(), os.getpid(), _born(os.getpid()))

    def runs_here(self) -> bool | None:
        """Whether it lives; None where that cannot be seen from here."""
        if self.space != _space():
            return None
        return _born(self.pid) == self.born


class Leases:
    """One launch's claims on the trials of one experiment.

    Raises what the store raises; while it is away, waits for it (`store_access.patiently`).
    """

    def __init__(self, uri: str, experiment_id: str, launch: str) -> None:
        self._client = client_of(uri)
        self.me = Holder.this_process(f"{launch}-{secrets.token_hex(4)}")
        self._board = patiently(lambda: _board(self._client, experiment_id))
        self._claims: dict[str, tuple[int, str]] = {}
        self._released: dict[str, int] = {}
        self._counters: dict[str, str] = {}
        self._watched: dict[str, tuple[str, float]] = {}
        self._mine: dict[str, int] = {}
        self._beats = 0
        self.beat()
        self.look()

    def claim(self, trial_id: str) -> int:
        """The number of the claim, from 1, or 0 where another launch holds the trial."""
        for _ in range(3):
            number, holder = self._claims.get(trial_id, (0, ""))
            if number > self._released.get(trial_id, 0) and self._lives(holder):
                return 0
            key = f"claim.{trial_id}.{number + 1}"
            if patiently(lambda key=key: self._write_once(key)):  # type: ignore[misc]
                self._claims[trial_id] = (number + 1, str(self.me))
                self._mine[trial_id] = number + 1
                return number + 1
            self.look()
        return 0

    def release(self, trial_id: str) -> None:
        """Give a claim back."""
        number = self._mine.pop(trial_id)
        patiently(lambda: self._client.set_tag(self._board, f"released.{trial_id}", str(number)))
        self._released[trial_id] = number

    def holder(self, trial_id: str) -> Holder | None:
        """The other launch that holds a trial, as of the last `look`."""
        number, holder = self._claims.get(trial_id, (0, ""))
        held = number > self._released.get(trial_id, 0) and holder != str(self.me) and self._lives(holder)
        return Holder.parse(holder) if held else None

    def beat(self) -> None:
        """Say that this launch lives; to be called every HEARTBEAT_SECONDS."""
        self._beats += 1
        patiently(lambda: self._client.set_tag(self._board, f"alive.{self.me.launch}", str(self._beats)))

    def look(self) -> None:
        """Read what other launches claimed, released and counted."""
        data = patiently(lambda: self._client.get_run(self._board).data)
        for key, holder in data.params.items():
            _, trial_id, number = key.split(".")
            if int(number) > self._claims.get(trial_id, (0, ""))[0]:
                self._claims[trial_id] = (int(number), holder)
        for key, value in data.tags.items():
            kind, _, name = key.partition(".")
            if kind == "released":
                self._released[name] = int(value)
            elif kind == "alive":
                self._counters[name] = value

    def _lives(self, text: str) -> bool:
        holder = Holder.parse(text)
        if holder == self.me:
            return True
        here = holder.runs_here()
        if here is not None:
            return here
        counter, now = self._counters.get(holder.launch, ""), time.monotonic()
        seen, since = self._watched.get(holder.launch, ("never", now))
        if seen != counter:
            self._watched[holder.launch] = (counter, now)
            return True
        return now - since < HOLDER_PATIENCE

    def _write_once(self, key: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_param(self._board, key, str(self.me))
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                return False
            raise
        return True


def _board(client: Any, experiment_id: str) -> str:
    """The run that holds the experiment's claims; made by whoever comes first."""
    from mlflow.exceptions import MlflowException

    first = _first_run(client)
    found: str | None = client.get_run(first).data.params.get(f"board.{experiment_id}")
    if found:
        return found
    home = client.get_run(first).info.experiment_id
    mine: str = client.create_run(home, run_name=f"board of experiment {experiment_id}").info.run_id
    try:
        client.log_param(first, f"board.{experiment_id}", mine)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        client.delete_run(mine)
        winner: str = client.get_run(first).data.params[f"board.{experiment_id}"]
        return winner
    client.set_terminated(mine, "FINISHED")
    return mine


def _first_run(client: Any) -> str:
    """The run that leads to the boards. Only one launch can create the experiment; it makes the run."""
    from mlflow.exceptions import MlflowException

    try:
        home = client.create_experiment(_EXPERIMENT, tags={"mlflow.note.content": _NOTE})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        experiment = client.get_experiment_by_name(_EXPERIMENT)
        home = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(home)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = client.search_runs([home], "tags.`lqray.first` = 'yes'", order_by=["attributes.start_time ASC"])
            if found:
                return str(found[0].info.run_id)
            time.sleep(0.2)  # it has just been made, or its maker died in between
    run: str = client.create_run(home, run_name="boards", tags={"lqray.first": "yes"}).info.run_id
    client.set_terminated(run, "FINISHED")
    return run


def _space() -> str:
    """Where process numbers mean the same: the machine, since it was started, and the process namespace in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}:?"


def _born(pid: int) -> str:
    """When a process started, in the kernel's own count; "" for one that is no more, or only waits to be reaped."""
    try:
        # The name, in parentheses, may hold anything; after it, fields 3 (state) and 22 (start) of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc").is_dir():
            return ""
    import psutil

    return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else ""
