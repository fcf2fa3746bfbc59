"""Mailboxes and the launcher's side of them, in one process: updates arrive in order, each once, whatever dies
between."""

import asyncio
import pickle
import subprocess
import sys

import pytest

from lqray.orchestration.worker.task import Ack, Outcome, Update

pytest.importorskip("ray")
from lqray.orchestration.launchers.ray import channel
from lqray.orchestration.launchers.ray.channel import ENDED, Ended, Ends, UpdateReceiver
from lqray.orchestration.launchers.ray.mailbox import Mailbox


def update(trial: str = "a", start: int = 1) -> Update:
    return Update(trial, start, [])


class Reference:
    def __init__(self, call):
        self.call = call


class Remote:
    """A mailbox's handle; `dead` or `silent` as a killed or a stopped process is."""

    def __init__(self, mailbox: Mailbox):
        self.mailbox, self.dead, self.silent = mailbox, False, False
        self.exchange = self

    def remote(self, *given):
        return Reference(lambda: asyncio.run(self.mailbox.exchange(*given)) if not self.dead else self.die())

    def die(self):
        raise channel.ray.exceptions.RayError("killed")


@pytest.fixture
def mailboxes(monkeypatch):
    """By name; what Ray's functions see."""
    found: dict[str, Remote] = {}

    def wait(references, num_returns, timeout):
        silent = [one for one in references if any(box.silent for box in found.values())]
        return [one for one in references if one not in silent], silent

    monkeypatch.setattr(channel.ray, "wait", wait)
    monkeypatch.setattr(channel.ray, "get", lambda reference: reference.call())
    monkeypatch.setattr(channel.ray, "get_actor", lambda name: found[name])
    monkeypatch.setattr(channel.ray.util, "list_named_actors", lambda: list(found))
    return found


def post(box: Remote, number: int, what: Update) -> Ack:
    return Ack(*asyncio.run(box.mailbox.post((what.trial_id, what.start), number, pickle.dumps(what))))


def test_news_arrive_in_order_and_once_and_are_answered(mailboxes):
    box = mailboxes["lqray-mailbox-1"] = Remote(Mailbox())
    heard = []
    updates = UpdateReceiver(heard.append, lambda: {"a": Ack(7, False)})
    first, second, third = (Update("a", 1, [], host=host) for host in ("first", "second", "third"))
    assert post(box, 2, second) == Ack()
    updates.fetch()
    assert heard == []  # the first is on its way
    post(box, 1, first)
    updates.fetch()
    updates.fetch()
    assert heard == [first, second]
    assert post(box, 3, third) == Ack(7, False)
    assert len(asyncio.run(box.mailbox.rest(("a", 1)))[0]) == 1  # what was taken is forgotten there
    asyncio.run(box.mailbox.halt(("a", 1)))
    assert post(box, 4, update()).stop
    assert not post(box, 1, update(start=2)).stop


def test_what_was_not_fetched_comes_with_the_end(mailboxes):
    box = mailboxes["lqray-mailbox-1"] = Remote(Mailbox())
    heard = []
    updates = UpdateReceiver(heard.append, dict)
    post(box, 1, update())
    updates.fetch()
    post(box, 2, update())
    post(box, 3, update())
    written, drained = asyncio.run(box.mailbox.rest(("a", 1)))
    assert drained == ""
    rest = [(number, pickle.loads(one)) for number, one in written]
    result = {ENDED: Ended({0: Outcome({"loss": 1.0})}, [(1, update()), *rest]), "done": True}

    class Tunes:
        trial_id = "x"

    Ends(updates, lambda tune_trial: ("a", 1)).on_trial_result(1, [], Tunes(), result)
    assert len(heard) == 3
    assert result == {"done": True}  # Tune keeps results for as long as the sweep lasts
    assert updates.ended["a", 1].outcomes == {0: Outcome({"loss": 1.0})}


def test_a_group_of_which_a_node_is_drained_stops_its_trial_and_takes_no_other(mailboxes):
    """One of another node goes on."""
    leaves = mailboxes["lqray-mailbox-1"] = Remote(Mailbox())
    stays = mailboxes["lqray-mailbox-2"] = Remote(Mailbox())
    for box, nodes in ((leaves, ["n1", "n2"]), (stays, ["n1", "n1"])):
        for node in nodes:
            asyncio.run(box.mailbox.arrive(node))
    drained = {}
    updates = UpdateReceiver(lambda one: None, dict, lambda: drained)
    updates.fetch()
    assert asyncio.run(leaves.mailbox.put(b"first")) == 0
    assert not post(leaves, 1, update()).stop
    drained["n2"] = "10.0.0.2"
    updates.fetch()
    assert post(leaves, 2, update()).stop
    assert asyncio.run(leaves.mailbox.rest(("a", 1)))[1] == "10.0.0.2"
    assert asyncio.run(leaves.mailbox.put(b"second")) is None
    assert asyncio.run(leaves.mailbox.put(None)) == 1  # that its workers end is heard
    assert not post(stays, 1, update("b")).stop
    assert asyncio.run(stays.mailbox.rest(("b", 1)))[1] == ""
    assert asyncio.run(stays.mailbox.put(b"first")) == 0


def test_news_that_could_not_be_taken_are_not_lost(mailboxes):
    box = mailboxes["lqray-mailbox-1"] = Remote(Mailbox())
    heard = []
    failing = [True]

    def hear(one):
        if failing:
            failing.pop()
            raise OSError("no space")
        heard.append(one)

    updates = UpdateReceiver(hear, dict)
    post(box, 1, update())
    updates.fetch_now()
    assert heard == []
    updates.fetch_now()
    assert len(heard) == 1


def test_a_mailbox_that_died_or_is_silent_holds_nothing_up(mailboxes):
    dead = mailboxes["lqray-mailbox-1"] = Remote(Mailbox())
    lives = mailboxes["lqray-mailbox-2"] = Remote(Mailbox())
    mailboxes["somebody-else"] = Remote(Mailbox())
    dead.dead = True
    heard = []
    updates = UpdateReceiver(heard.append, dict)
    post(lives, 1, update("b"))
    updates.fetch()
    assert len(heard) == 1
    lives.silent = True
    updates.fetch()
    lives.silent = False
    post(lives, 2, update("b"))
    updates.fetch()
    updates.fetch()
    assert len(heard) == 2


def test_the_thread_survives_every_error(mailboxes, monkeypatch):
    box = mailboxes["lqray-mailbox-1"] = Remote(Mailbox())
    monkeypatch.setattr(channel, "_POLL_SECONDS", 0.01)
    errors = [channel.ray.exceptions.GetTimeoutError("no"), RuntimeError("never"), ValueError("what")]

    def names():
        if errors:
            raise errors.pop()
        return list(mailboxes)

    monkeypatch.setattr(channel.ray.util, "list_named_actors", names)
    heard = []
    updates = UpdateReceiver(heard.append, dict)
    post(box, 1, update())
    with updates:
        for _ in range(1000):
            if heard:
                break
            updates._stop.wait(0.01)
    assert len(heard) == 1


def test_what_the_mailbox_and_the_driver_import_of_lqray_is_light():
    """They start with every trial of an isolated sweep, and would take as long as a worker."""
    rooms = "lqray.orchestration.launchers.ray"
    script = f"import sys, {rooms}.mailbox, {rooms}.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_what_asks_an_ended_ray_starts_no_other_one():
    script = "from lqray.orchestration.launchers.ray import channel; channel.ray.wait([channel.ray.put(1)])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ray.init" in done.stderr.splitlines()[-1]
