"""When a trial's driver keeps its worker group for the next one; with a group in memory, without Ray's processes."""

import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lqray.orchestration.worker.task import Outcome

pytest.importorskip("ray")
from lqray.orchestration.launchers.ray import driver as drivers
from lqray.orchestration.launchers.ray.channel import ENDED


class Group:
    """Of one process, whose tasks end at once."""

    made: ClassVar[list] = []

    def __init__(self, processes, resources, name, storage):
        self.processes, self.alive, self.drained, self.tasks = processes, True, "", 0
        Group.made.append(self)

    def give(self, task):
        if self.drained:
            return None
        self.tasks += 1
        return self.tasks

    def hear(self):
        return self.tasks, 0, Outcome({"loss": 1.0})

    def rest(self, task):
        return [], self.drained

    def end(self):
        self.alive = False


@pytest.fixture
def driver(monkeypatch):
    Group.made = []
    monkeypatch.setattr(drivers, "Group", Group)
    made = object.__new__(drivers.TrialDriver)
    made._trial_info = None
    made.setup(config())
    yield made
    made.cleanup()


def config(number: int = 1) -> dict:
    task = SimpleNamespace(trial_id=str(number), start=1, resources=None)
    return {"task": task, "processes": 1, "warm": True, "groups_folder": ""}


def test_a_warm_group_has_the_next_trial_unless_its_machine_is_drained(driver):
    assert driver.step()["done"]
    assert driver.reset_config(config(2))
    driver.step()
    (first,) = Group.made
    assert (first.tasks, first.alive) == (2, True)
    first.drained = "10.0.0.2"  # while it waits
    driver.reset_config(config(3))
    ended = driver.step()[ENDED]
    assert (ended.drained, ended.outcomes[0].metrics) == ("", {"loss": 1.0})
    second = Group.made[1]
    assert (first.alive, second.alive, second.tasks) == (False, True, 1)
    second.give = lambda task: setattr(second, "drained", "10.0.0.3") or 2  # while its trial runs
    second.tasks = 2
    driver.reset_config(config(4))
    assert driver.step()[ENDED].drained == "10.0.0.3"
    assert not second.alive  # at once: Ray ends a drained machine when nothing is left there


def wait_for(ready) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_group_that_has_no_trial_gives_its_places_back(driver, monkeypatch):
    """Before, where machines had left, the trial that waited for the places of an idle group waited for ever."""
    monkeypatch.setattr(drivers, "_IDLE_SECONDS", 0.05)
    driver.step()
    wait_for(lambda: not Group.made[0].alive)
    driver.reset_config(config(2))
    driver.step()
    assert [one.tasks for one in Group.made] == [1, 1]


def test_a_group_that_is_being_given_back_is_waited_for(driver, monkeypatch):
    monkeypatch.setattr(drivers, "_IDLE_SECONDS", 0.05)
    going, gone = threading.Event(), threading.Event()

    def end(group):
        going.set()
        gone.wait(30)
        group.alive = False

    monkeypatch.setattr(Group, "end", end)
    driver.step()
    assert going.wait(30)
    driver.reset_config(config(2))
    step = threading.Thread(target=driver.step)
    step.start()
    time.sleep(0.1)
    assert len(Group.made) == 1
    gone.set()
    step.join(30)
    assert [one.tasks for one in Group.made] == [1, 1]


def test_a_group_with_a_trial_is_not_given_back(driver, monkeypatch):
    monkeypatch.setattr(drivers, "_IDLE_SECONDS", 0.05)
    driver.step()
    monkeypatch.setattr(Group, "hear", lambda self: time.sleep(0.2) or (self.tasks, 0, Outcome({"loss": 1.0})))
    driver.reset_config(config(2))
    driver.step()
    assert [one.tasks for one in Group.made] == [2]
