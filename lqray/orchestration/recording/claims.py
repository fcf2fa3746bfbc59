"""Claims: of several launches on one store, which one runs a trial.

What makes a claim atomic is that a param of an MLflow run is written once: of two launches that write the same key,
MLflow refuses the second, whatever its backend. The keys are params of a run of its own for each experiment (its
board), found through a first run in the experiment `lqray-leases`.

    param  claim.TRIAL.N     holder: who claimed the trial for the N-th time
    tag    released.TRIAL.N  N: this claim was given back (earlier versions: released.TRIAL, the last of them)
    tag    alive.LAUNCH      a counter that its holder keeps increasing
    metric taken             a point for every claim that was made though the one before it had not been released

A claim counts until it is released, or its holder is dead, or stands still: dead at once, where it was a process of
this machine that is no more; otherwise when its counter has not moved for HOLDER_PATIENCE seconds, of this process's
own clock and only while this process could read the store, so that clocks need not agree and a store that was away for
all is held against nobody.

A holder that stood still may wake up. It proves its claims with every heartbeat: counts, then looks whether anything
was taken from anybody (reading the whole board would take half a second, with ten thousand trials). What it proved
lasts until `valid_until`, before anybody may take it for dead; after that it asks again before it writes anything
(`ours`).
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lqray.experiment.foreign import whole_number
from lqray.experiment.layout import CLAIMS
from lqray.orchestration.recording.holder import Holder
from lqray.store.client import client_of
from lqray.store.deleted_runs import is_deleted
from lqray.store.outage import patiently
from lqray.store.tags import UNLISTED

HEARTBEAT_SECONDS = 5.0
HOLDER_PATIENCE = 30.0

_MARGIN = 5.0
"""Seconds before HOLDER_PATIENCE is over in which a holder no longer writes without asking."""
_LOOK_SECONDS = 3.0
_TAKEN = "taken"
_CLAIM = re.compile(r"claim\.(?P<trial_id>[^.]+)\.(?P<number>[0-9]{1,18})")
_NOTE = "Which launch runs which trial. Kept by lqray; may be deleted while no sweep runs."
T = TypeVar("T")


@dataclass
class _Watch:
    """Of another launch: its counter, when it moved last before our eyes (None: never), how long it stood still while
    we looked, and when we looked last."""

    counter: str
    looked: float
    moved: float | None = None
    stood: float = 0.0

    def see(self, counter: str, now: float) -> None:
        if counter != self.counter:
            self.counter, self.moved, self.stood = counter, now, 0.0
        else:  # between two looks far apart the store may have been away, for its holder as well
            self.stood += min(now - self.looked, 2 * HEARTBEAT_SECONDS)
        self.looked = now


class Claims:
    """One launch's claims on the trials of one experiment. Thread-safe.

    Raises what the store raises; while it is away, waits for it (`lqray.store.outage.patiently`), `prove` excepted.
    """

    def __init__(self, uri: str, experiment_id: str, launch: str) -> None:
        self._client = client_of(uri)
        self._experiment_id = experiment_id
        self.me = Holder.this_process(f"{launch}-{secrets.token_hex(4)}")
        self.board = patiently(lambda: _board(self._client, experiment_id))
        self._lock = threading.RLock()
        self._claims: dict[str, tuple[int, str]] = {}
        self._released: dict[str, int] = {}
        self._watched: dict[str, _Watch] = {}
        self._mine: dict[str, int] = {}
        self._ripe: dict[str, float] = {}
        self._beats = 0
        self._looked = -_LOOK_SECONDS
        self._takings = -1
        self.valid_until = 0.0
        """Until when, by `now`, nobody takes this launch for dead."""
        patiently(self.prove)

    def claim(self, trial_id: str) -> int:
        """The number of the claim, from 1, or 0 where another launch holds the trial, or may still act as if it did."""
        if trial_id in self._mine:
            if now() < self._ripe.get(trial_id, 0.0):
                return 0
            self._ripe.pop(trial_id, None)
            if self.ours(trial_id):
                return self._mine[trial_id]
            self.forget(trial_id)
        for _ in range(3):
            number, holder = self._held_by(trial_id)
            if holder and now() - self._looked >= _LOOK_SECONDS:
                patiently(self.look)
                number, holder = self._held_by(trial_id)
            if holder and self._lives(holder):
                return 0
            counter = self._counter(holder)
            if patiently(lambda key=f"claim.{trial_id}.{number + 1}": self._write_once(key)):  # type: ignore[misc]
                with self._lock:
                    self._claims[trial_id] = (number + 1, str(self.me))
                    self._mine[trial_id] = number + 1
                return number + 1 if not holder or self._taken(holder, counter, trial_id) else 0
            patiently(self.look)
        return 0

    def release(self, trial_id: str) -> None:
        """Give a claim back, if this launch has one. It says which: a late word takes nothing from a later claim."""
        number = self._mine.get(trial_id)
        if number is None:
            return
        patiently(lambda: self._set_tag(f"released.{trial_id}.{number}", str(number)))
        with self._lock:
            self._released[trial_id] = max(number, self._released.get(trial_id, 0))
        self.forget(trial_id)

    def close(self) -> None:
        """Give back what is left: claimed, but not begun. Does not wait for a store that is away: this process ends, by
        which its claims are void, too."""
        for trial_id in list(self._mine):
            self._set_tag(f"released.{trial_id}.{self._mine[trial_id]}", str(self._mine[trial_id]))
            self.forget(trial_id)

    def forget(self, trial_id: str) -> None:
        """A claim is no longer this launch's."""
        with self._lock:
            self._mine.pop(trial_id, None)
            self._ripe.pop(trial_id, None)

    def holder(self, trial_id: str) -> Holder | None:
        """The other launch that holds a trial, as of the last `look`."""
        _, holder = self._held_by(trial_id)
        return Holder.parse(holder) if holder and holder != str(self.me) and self._lives(holder) else None

    def moved(self, holder: Holder) -> bool:
        """Whether another launch was seen to count within the last heartbeats: it is surely at work."""
        watch = self._watched.get(holder.launch)
        return watch is not None and watch.moved is not None and now() - watch.moved <= 3 * HEARTBEAT_SECONDS

    def number(self, trial_id: str) -> int:
        """Of this launch's claim on a trial."""
        return self._mine[trial_id]

    def ours(self, trial_id: str) -> bool:
        """Whether a trial that this launch claimed is still its own. Asks the store where the last proof is too old."""
        if now() >= self.valid_until:
            patiently(self.prove)
        return trial_id in self._mine and trial_id not in self.lost()

    def lost(self) -> list[str]:
        """Trials that this launch claimed and another one has claimed since, as of the last `look`."""
        with self._lock:
            return [trial_id for trial_id, number in self._mine.items() if self._claims[trial_id][0] > number]

    def prove(self) -> None:
        """Say that this launch lives, and see what it has lost; to be called every HEARTBEAT_SECONDS. Does not wait for
        a store that is away."""
        began = now()
        self._beats += 1
        self._set_tag(f"alive.{self.me.launch}", str(self._beats))
        takings = len(self._client.get_metric_history(self.board, _TAKEN))
        if takings != self._takings:
            self.look()
            self._takings = takings
        self.valid_until = began + HOLDER_PATIENCE - _MARGIN

    def look(self) -> None:
        """Read what other launches claimed, released and counted."""
        data = self._client.get_run(self.board).data
        counters: dict[str, str] = {}
        with self._lock:
            self._looked = now()
            for key, holder in data.params.items():
                found = _CLAIM.fullmatch(key)  # others can write here, too: what is no claim counts for nothing
                if found and int(found["number"]) > self._claims.get(found["trial_id"], (0, ""))[0]:
                    self._claims[found["trial_id"]] = (int(found["number"]), holder if _is_holder(holder) else "")
            for key, value in data.tags.items():
                kind, _, name = key.partition(".")
                if kind == "released":
                    trial_id = name.partition(".")[0]
                    self._released[trial_id] = max(whole_number(value, 0), self._released.get(trial_id, 0))
                elif kind == "alive":
                    counters[name] = value
            for trial_id in self._claims:
                _, holder = self._held_by(trial_id)
                if holder and holder != str(self.me):
                    counters.setdefault(Holder.parse(holder).launch, "")
            for launch, counter in counters.items():
                self._watched.setdefault(launch, _Watch(counter, self._looked)).see(counter, self._looked)

    def _held_by(self, trial_id: str) -> tuple[int, str]:
        """(number of the last claim, its holder; "" where it was given back)."""
        number, holder = self._claims.get(trial_id, (0, ""))
        return number, holder if number > self._released.get(trial_id, 0) else ""

    def _lives(self, text: str) -> bool:
        holder = Holder.parse(text)
        if holder == self.me:
            return True
        if holder.runs_here() is False:
            return False
        watch = self._watched.get(holder.launch)
        return watch is None or watch.stood < HOLDER_PATIENCE

    def _counter(self, holder: str) -> str:
        watch = self._watched.get(Holder.parse(holder).launch) if holder else None
        return watch.counter if watch else ""

    def _taken(self, holder: str, counter: str, trial_id: str) -> bool:
        """Tell a holder that its trial was taken; whether the trial can be begun at once. If the holder, which stood
        still, counts again by now, it may have proved its claim just before, and goes on until it looks again."""
        step = secrets.randbelow(2**31)  # a point is known by its time, step and value
        patiently(lambda: self._do(lambda: self._client.log_metric(self.board, _TAKEN, 1.0, step=step)))
        if Holder.parse(holder).runs_here() is False:
            return True
        patiently(self.look)
        if self._counter(holder) == counter:
            return True
        self._ripe[trial_id] = now() + HOLDER_PATIENCE
        return False

    def _set_tag(self, key: str, value: str) -> None:
        self._do(lambda: self._client.set_tag(self.board, key, value))

    def _write_once(self, key: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._do(lambda: self._client.log_param(self.board, key, str(self.me)))
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                return False
            raise
        return True

    def _do(self, call: Callable[[], T]) -> T:
        """A call that writes to the board; once more, where somebody has deleted that."""
        from mlflow.exceptions import MlflowException

        try:
            return call()
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"):
                raise
            if not is_deleted(self._client, self.board):
                raise
            self._mend()
            return call()

    def _mend(self) -> None:
        """Bring the board back, or, where it is gone for good, a new one, with this launch's claims."""
        board = _board(self._client, self._experiment_id)
        if board == self.board:
            return
        with self._lock:
            self.board, mine = board, list(self._mine)
            self._claims.clear()
            self._released.clear()
            self._mine.clear()
            for trial_id in mine:  # numbered anew; of one that another launch has by now, the look tells
                self._mine[trial_id], self._claims[trial_id] = 0, (0, str(self.me))
        for trial_id in mine:
            if self._write_once(f"claim.{trial_id}.1"):
                with self._lock:
                    self._mine[trial_id], self._claims[trial_id] = 1, (1, str(self.me))
        self.look()


def now() -> float:
    """Seconds on a clock that all processes of this machine share and that goes on while it sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _board(client: Any, experiment_id: str) -> str:
    """The run that holds the experiment's claims; made by whoever comes first. One that was deleted is brought back,
    with the claims on it; one that is gone for good (`mlflow gc`) is followed by another."""
    from mlflow.exceptions import MlflowException

    first = _first_run(client)
    number = 1
    while True:
        key = f"board.{experiment_id}" + (f".{number}" if number > 1 else "")
        found: str | None = client.get_run(first).data.params.get(key)
        if found and _restored(client, found):
            return found
        if not found:
            break
        number += 1
    home = client.get_run(first).info.experiment_id
    mine: str = client.create_run(home, run_name=f"board of experiment {experiment_id}").info.run_id
    try:
        client.log_param(first, key, mine)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        client.delete_run(mine)
        winner: str = client.get_run(first).data.params[key]
        return winner
    client.set_terminated(mine, "FINISHED")
    return mine


def _restored(client: Any, run_id: str) -> bool:
    """Whether a run is there, again if it was deleted; not where it is gone for good."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            client.restore_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _first_run(client: Any) -> str:
    """The run that leads to the boards. Only one launch can create the experiment; it makes the run."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    def look() -> str | None:
        order = ["attributes.start_time ASC"]
        found = client.search_runs([home], "tags.`lqray.first` = 'yes'", ViewType.ALL, order_by=order)
        return next((one.info.run_id for one in found if _restored(client, one.info.run_id)), None)

    try:
        home = client.create_experiment(CLAIMS, tags={"mlflow.note.content": _NOTE, UNLISTED: "true"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        experiment = client.get_experiment_by_name(CLAIMS)
        home = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(home)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            time.sleep(0.2)  # it has just been made, or its maker died in between
    run: str = client.create_run(home, run_name="boards", tags={"lqray.first": "yes"}).info.run_id
    client.set_terminated(run, "FINISHED")
    return look() or run  # another launch may have waited for as long


def _is_holder(text: str) -> bool:
    try:
        Holder.parse(text)
    except ValueError:
        return False
    return True
