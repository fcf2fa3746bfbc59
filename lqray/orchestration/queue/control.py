"""Requests of one `lqray` process to another's launch, passed through tags of the MLflow experiment."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lqray.experiment.choice import matching
from lqray.experiment.foreign import in_line, json_value
from lqray.experiment.grid import NamedTrial
from lqray.experiment.plan import EARLIER_PLAN, PLAN, PublishedPlan, plan_tags, published_plan
from lqray.experiment.secrets import masked
from lqray.orchestration.queue.queue import TrialQueue
from lqray.store.client import client_of
from lqray.store.deleted_runs import why_deleted
from lqray.store.launches import Launch
from lqray.store.outage import is_away, lost_for_good, patiently
from lqray.store.tags import STOP

_POLL_SECONDS = 2.0
_DELETED_SECONDS = 5.0
_log = logging.getLogger(__name__)

OnPlan = Callable[[PublishedPlan], tuple[Callable[[NamedTrial], bool], str] | None]


def ask_to_stop(uri: str, experiment_id: str, pattern: str) -> None:
    """Ask every launch of the experiment to stop the trials that `pattern` matches. Each request has a tag of its own:
    none takes the place of another that no launch has seen yet."""
    key = f"{STOP}.{secrets.token_hex(8)}"
    request = json.dumps({"pattern": pattern})
    patiently(lambda: client_of(uri).set_experiment_tag(experiment_id, key, request), 30.0)


def publish_plan(launch: Launch) -> None:
    """Tell older launches of the experiment what its file says now: what they have not begun and is no longer in it,
    they drop, if it is their file. What an earlier version published is taken back: the UI would show it."""
    from mlflow.exceptions import MlflowException

    client = client_of(launch.uri)
    for key, value in plan_tags(launch.launch_id, launch.source, file_of(launch)).items():
        patiently(lambda key=key, value=value: client.set_experiment_tag(launch.experiment_id, key, value))  # type: ignore[misc]
    for key in patiently(lambda: client.get_experiment(launch.experiment_id).tags):
        if key == EARLIER_PLAN or key.startswith(f"{EARLIER_PLAN}."):
            with suppress(MlflowException):  # another launch was faster, or an old server deletes none
                patiently(lambda key=key: client.delete_experiment_tag(launch.experiment_id, key))  # type: ignore[misc]


def file_of(launch: Launch) -> str:
    """Where a launch read its experiment file: HOST:PATH, the end of it where that is very long."""
    return f"{socket.gethostname()}:{Path(launch.file).absolute()}"[-400:]


class ControlRequests:
    """New requests of others, as seen from one launch: those made before this was made are not its own."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._client = client_of(launch.uri)
        self._seen: dict[str, str] = patiently(lambda: self._client.get_experiment(launch.experiment_id).tags)
        self._heeded = {item for item in self._seen.items() if _asks_to_stop(item[0])}
        self._plan = self._seen.get(PLAN)
        self._gone = False

    def stops(self) -> Iterator[tuple[Callable[[NamedTrial], bool], str]]:
        """(which trials, why), as they come. Reads the store. Whoever deletes the experiment wants all to stop."""
        gone = why_deleted(self._client, self._launch.experiment_id, None)
        if gone:
            if not self._gone:
                self._gone = True
                yield matching("*"), gone
            return
        self._seen = self._client.get_experiment(self._launch.experiment_id).tags
        for item in sorted(self._seen.items()):
            if not _asks_to_stop(item[0]) or item in self._heeded:
                continue
            self._heeded.add(item)
            try:
                pattern = str(json_value(item[1])["pattern"])
            except (ValueError, KeyError, TypeError):
                said = (in_line(item[0]), in_line(item[1])[:80])
                _log.warning("the tag %s of the MLflow experiment is no request to stop: %s", *said)
                continue
            yield matching(pattern), "lqray stop"

    def newer_plan(self) -> PublishedPlan | None:
        """The experiment file that a newer launch uses, when there is one; as of the last `stops`."""
        plan = self._seen.get(PLAN)
        if plan is None or plan == self._plan:
            return None
        self._plan = plan
        found = published_plan(self._seen)
        return found if found and found.launch != self._launch.launch_id else None


class ControlWatch:
    """Passes requests of others to the queue, from a thread of its own while the context lasts.

    on_plan: what a newer launch's experiment file leaves to be done, and why not the rest; None: all. deleted: why a
    running trial is to stop, where its run was deleted. each_time: called every two seconds, too.
    """

    def __init__(
        self,
        requests: ControlRequests,
        queue: TrialQueue,
        on_plan: OnPlan,
        deleted: Callable[[str], str | None],
        each_time: Callable[[], None],
    ) -> None:
        self._requests = requests
        self._queue, self._on_plan, self._deleted, self._each_time = queue, on_plan, deleted, each_time
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=30)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(_POLL_SECONDS):
            try:
                self._each_time()
                for chosen, why in self._requests.stops():
                    self._queue.stop(chosen, why)
                if time.monotonic() - looked > _DELETED_SECONDS:
                    looked = time.monotonic()
                    self._stop_deleted()
                plan = self._requests.newer_plan()
                if plan and (wanted := self._on_plan(plan)):
                    self._queue.want(*wanted)
            except Exception as error:  # the watcher must outlive every hiccup of the store
                if self._over.is_set():
                    return
                if lost := lost_for_good(error):  # what trains could not be recorded: the end of the first says so
                    self._queue.stop(matching("*"), str(lost))
                    return
                if is_away(error):  # who waits for the store says so, once
                    continue
                _log.warning("watching the store: %s", masked(str(error)))

    def _stop_deleted(self) -> None:
        """Whoever deletes the run of a trial wants it to stop."""
        for trial_id in self._queue.running_ids:
            if not self._queue.stop_reason(trial_id) and (why := self._deleted(trial_id)):
                self._queue.stop(lambda named, trial_id=trial_id: named.trial.id == trial_id, why)  # type: ignore[misc]


def _asks_to_stop(key: str) -> bool:
    return key == STOP or key.startswith(f"{STOP}.")
