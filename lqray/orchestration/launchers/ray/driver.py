"""The Tune trainable: drives one trial after the other on a worker group. Imports Ray at once: import it where Ray is
needed anyway."""

from __future__ import annotations

import threading
import time
from typing import Any

from ray import tune
from ray.exceptions import RayError

from lqray.orchestration.launchers.ray.channel import ENDED, Ended
from lqray.orchestration.launchers.ray.deaths import failure_of_rank
from lqray.orchestration.launchers.ray.group import Group
from lqray.orchestration.worker.task import Outcome, WorkerTask

_STOP_SECONDS = 60.0
_IDLE_SECONDS = 15.0
"""A group that has had no trial for so long ends: where machines have left, other trials may wait for its places."""


class TrialDriver(tune.Trainable):  # type: ignore[misc]
    """Config: {"task": WorkerTask, "processes": int, "warm": bool, "groups_folder": str}, of which the last two are the
    launch's. An actor of its own, which holds no CPU; its workers hold theirs.

    Tune gives it the next trial when one is over. warm: the worker group stays, as long as the next trial is of as many
    processes, none failed, and none of its machines is being drained; otherwise each trial has one of its own. A result
    is an evaluation, with all metrics by name and "iteration"; the last one has how the trial ended as well (ENDED),
    and {"done": True}.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Tune's hook."""
        self._warm, self._folder = config["warm"], config["groups_folder"]
        self._group: Group | None = None
        self._idle: threading.Timer | None = None
        self._ending = threading.RLock()
        self._count = 0
        self._stuck = False
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune's hook: the next trial. False, and Tune takes a new actor, when the last one cannot be stopped."""
        self._stop()
        if self._stuck:
            return False
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Tune's hook: until the next evaluation, or the end."""
        outcomes: dict[int, Outcome] = {}
        if self._number is None:
            try:
                self._give()
            except Exception as error:
                return self._ended({0: Outcome(failure=failure_of_rank(error, None))})
        assert self._group is not None
        try:
            while len(outcomes) < self._group.processes:
                event = self._group.hear()
                if event is None:
                    failed = any(outcome.failure for outcome in outcomes.values())
                    for rank, failure in ({} if failed else self._group.failures()).items():
                        outcomes[rank] = Outcome(failure=failure)
                    break
                number, rank, what = event
                if number != self._number:
                    continue
                if isinstance(what, Outcome):
                    outcomes[rank] = what
                elif not outcomes:
                    return {"iteration": what.iteration, **what.metrics}
        except RayError as error:  # the mailbox died, and with it the group
            missing = min(set(range(self._group.processes)) - set(outcomes))
            outcomes[missing] = Outcome(failure=failure_of_rank(error, None))
        return self._ended(outcomes)

    def cleanup(self) -> None:
        """Tune's hook: no trial follows."""
        self._busy()
        self._stop()
        self._end_group()

    def _begin(self, config: dict[str, Any]) -> None:
        self._task: WorkerTask = config["task"]
        self._processes: int = config["processes"]
        self._number: int | None = None

    def _give(self) -> None:
        """Hand the trial to a group, made now if there is none that fits."""
        self._busy()
        if self._group and (not self._group.alive or self._group.processes != self._processes):
            self._end_group()
        self._number = self._group.give(self._task) if self._group else None
        if self._number is None:
            self._end_group()
            self._count += 1
            name = f"{self._task.trial_id}-{self._task.start}-{self.trial_id}-{self._count}"
            self._group = Group(self._processes, self._task.resources, name, self._folder)
            self._number = self._group.give(self._task)

    def _ended(self, outcomes: dict[int, Outcome]) -> dict[str, Any]:
        updates, drained = self._group.rest(self._task) if self._group else ([], "")
        if self._group and (not self._warm or not self._group.alive or drained or _out_of_step(outcomes)):
            self._end_group()
        self._number = None
        self._rest()
        first = outcomes.get(0, Outcome())
        return {**first.metrics, ENDED: Ended(outcomes, updates, drained), "done": True}

    def _rest(self) -> None:
        """No trial now: after a while without one the group ends."""
        if self._group:
            timer = threading.Timer(_IDLE_SECONDS, lambda: self._release(timer))
            timer.daemon = True
            self._idle = timer
            timer.start()

    def _release(self, timer: threading.Timer) -> None:
        with self._ending:
            if self._idle is timer:
                self._end_group()

    def _busy(self) -> None:
        """A trial comes, or none any more. Waits for a group that is just being ended."""
        with self._ending:
            if self._idle:
                self._idle.cancel()
            self._idle = None

    def _stop(self) -> None:
        """If a trial is on the way, let it stop: Tune does not want more of it."""
        if self._number is None or self._group is None or self._stuck:
            return
        self._group.halt(self._task)
        heard: set[int] = set()
        deadline = time.monotonic() + _STOP_SECONDS
        try:
            while len(heard) < self._group.processes and (event := self._group.hear()) is not None:
                if event[0] == self._number and isinstance(event[2], Outcome):
                    heard.add(event[1])
                if time.monotonic() > deadline:
                    self._stuck = True
                    return
        except RayError:  # the mailbox died, and with it the group
            self._end_group()
        self._number = None
        if not self._warm:
            self._end_group()
        self._rest()

    def _end_group(self) -> None:
        """Its workers have done what they had to: that they do not leave costs this driver its life, but no trial."""
        with self._ending:
            if self._group:
                try:
                    self._group.end()
                except TimeoutError:
                    self._stuck = True
            self._group = None


def _out_of_step(outcomes: dict[int, Outcome]) -> bool:
    return any(outcome.failure and outcome.failure.kind != "non_finite" for outcome in outcomes.values())
