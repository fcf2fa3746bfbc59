"""Between the ranks of a trial, its driver and the launcher: a mailbox for each worker group, and no other actor. What
is written to a mailbox and read from one passes here.

Rank 0 posts its updates there, numbered; the launcher fetches them, and they are kept until it has said that it has
them. What it has not when the trial ends goes with the end itself, through the driver. So a mailbox that dies costs its
group's trial a retry, and no other trial anything. Imports Ray at once: import it where Ray is needed anyway."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune import Callback

from lqray.orchestration.launchers.ray.cluster import on_this_node
from lqray.orchestration.launchers.ray.mailbox import Mailbox, Start
from lqray.orchestration.worker.task import Ack, Outcome, Update, WorkerTask
from lqray.training.reports import Report

Event = tuple[int, int, Outcome | Report]
"""Number of the task, rank, and how it ended there or an evaluation on the way."""

ENDED = "lqray/ended"
"""Key of a Tune result's `Ended`."""

_PREFIX = "lqray-mailbox-"
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
_QUIET_SECONDS = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a start of a trial ended, by rank, and the updates of it that the launcher may not have: (number, update).
    drained: the machine of a rank that is being drained, or ""."""

    outcomes: dict[int, Outcome]
    updates: Sequence[tuple[int, Update]] = ()
    drained: str = ""


def make_mailbox() -> Any:
    """Its handle, which the launcher finds by name; no CPU is taken for it. It is on the node of its driver."""
    name = f"{_PREFIX}{uuid.uuid4().hex}"
    return ray.remote(num_cpus=0, scheduling_strategy=on_this_node(), name=name)(Mailbox).remote()


def give(mailbox: Any, task: WorkerTask | None) -> Any:
    """A task for its group, or None: it shall end. Reference of the task's number, of None where it is not taken."""
    return mailbox.put.remote(None if task is None else pickle.dumps(task))


def arrive(mailbox: Any) -> None:
    """Say where this rank is."""
    mailbox.arrive.remote(ray.get_runtime_context().get_node_id())


def next_task(mailbox: Any, number: int) -> WorkerTask | None:
    """The task of a number, as soon as there is one; None: there are no more."""
    written = ray.get(mailbox.task.remote(number))
    return None if written is None else pickle.loads(written)


def tell(mailbox: Any, number: int, rank: int, what: Outcome | Report) -> None:
    """The driver what happened on a rank, for as long as it takes."""
    ray.get(mailbox.tell.remote((number, rank, pickle.dumps(what))))


def hear(mailbox: Any, seconds: float) -> Event | None:
    """What the ranks told next; None after so many seconds."""
    event = ray.get(mailbox.hear.remote(seconds))
    return None if event is None else (event[0], event[1], pickle.loads(event[2]))


def rest(mailbox: Any, start: Start, seconds: float) -> tuple[list[tuple[int, Update]], str]:
    """Updates of a start that ended, which the launcher may not have; a machine of its that is being drained, or ""."""
    written, drained = ray.get(mailbox.rest.remote(start), timeout=seconds)
    return _read(written), drained


def _read(written: list[tuple[int, bytes]]) -> list[tuple[int, Update]]:
    return [(number, pickle.loads(update)) for number, update in written]


class RayLink:
    """Link of rank 0, see `lqray.orchestration.worker.task.Link`; an evaluation goes to the driver as well.
    number: of the task."""

    def __init__(self, mailbox: Any, task: WorkerTask, number: int) -> None:
        self._mailbox, self._start, self._number = mailbox, (task.trial_id, task.start), number
        self._sent = 0
        self._answers: list[Any] = []
        self._heard = Ack()

    def send(self, update: Update) -> None:
        """See `Link`."""
        self._sent += 1
        self._answers.append(self._mailbox.post.remote(self._start, self._sent, pickle.dumps(update)))
        if update.report and update.report.evaluated and not update.report.final:
            self._mailbox.tell.remote((self._number, 0, pickle.dumps(update.report)))

    def acknowledged(self) -> Ack:
        """See `Link`."""
        while self._answers:
            ready, _ = ray.wait(self._answers[:1], timeout=0)
            if not ready:
                break
            self._heard = Ack(*ray.get(self._answers.pop(0)))
        return self._heard

    def close(self) -> None:
        """See `Link`."""
        if self._answers:
            ray.get(self._answers)


class UpdateReceiver:
    """The launcher's side: hands on the updates of every trial in order, each once, from a thread of its own while the
    context lasts, and whenever a trial ends: everything said before it comes first.

    hear: takes an update. answers: to the trials that run, by id. drained: names of the nodes that are being drained,
    by id. ended: by (trial, start).
    """

    def __init__(
        self,
        hear: Callable[[Update], None],
        answers: Callable[[], dict[str, Ack]],
        drained: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self._hear, self._answers, self._drained = hear, answers, drained
        self.ended: dict[Start, Ended] = {}
        self._taken: dict[Start, int] = {}
        self._asked: dict[str, tuple[Any, Any]] = {}
        self._fetching = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._complained = -_QUIET_SECONDS

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30.0)

    def fetch(self) -> None:
        """Pass on what is in the mailboxes. One that does not answer in time is asked no more until it has; one that
        died is passed over: its driver tells of that."""
        with self._fetching:
            answers = {trial: (heard.delivered, heard.stop) for trial, heard in self._answers().items()}
            taken, drained = dict(self._taken), self._drained()
            for name in self._names():
                if name not in self._asked:
                    mailbox = self._find(name)
                    if mailbox is not None:
                        self._asked[name] = (mailbox, mailbox.exchange.remote(answers, taken, drained))
            pending = [reference for _, reference in self._asked.values()]
            ready: Sequence[Any] = ()
            if pending:
                ready, _ = ray.wait(pending, num_returns=len(pending), timeout=_ANSWER_SECONDS)
            for name, (_, reference) in list(self._asked.items()):
                if reference in ready:
                    del self._asked[name]
                    self._take_answer(reference)

    def take(self, updates: Sequence[tuple[int, Update]]) -> None:
        """Hand on what is next of each start; what came before, or comes too early, is passed over."""
        for number, one in updates:
            start = (one.trial_id, one.start)
            if number == self._taken.get(start, 0) + 1:
                self._hear(one)
                self._taken[start] = number

    def close(self, trial_id: str, start: int, ended: Ended) -> None:
        """A start of a trial ended so."""
        with self._fetching:
            self.take(ended.updates)
            self.ended[trial_id, start] = ended

    def _take_answer(self, reference: Any) -> None:
        try:
            updates = _read(ray.get(reference))
        except ray.exceptions.RayError:
            return
        self.take(updates)

    def _names(self) -> list[str]:
        return [name for name in ray.util.list_named_actors() if name.startswith(_PREFIX)]

    def _find(self, name: str) -> Any:
        try:
            return ray.get_actor(name)
        except ValueError:  # it has ended since
            return None

    def fetch_now(self) -> None:
        """As `fetch`; says it when that is not possible, and goes on: what was said is kept."""
        try:
            self.fetch()
        except Exception as error:
            if not self._stop.is_set() and time.monotonic() - self._complained > _QUIET_SECONDS:
                self._complained = time.monotonic()
                _log.warning("updates of trials wait: %s", " ".join(str(error).split())[:300])

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self.fetch_now()


class Ends(Callback):  # type: ignore[misc]
    """Takes the ends of trials out of Tune's results, before Tune keeps them. start_of: a Tune trial's."""

    def __init__(self, receiver: UpdateReceiver, start_of: Callable[[str], Start]) -> None:
        self._receiver, self._start_of = receiver, start_of

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Tune's hook, before `on_trial_complete`."""
        ended: Ended | None = result.pop(ENDED, None)
        if ended is not None:
            self._receiver.close(*self._start_of(trial.trial_id), ended)
