"""How many trials machines hold, as they come and go; without Ray."""

import logging
import re

import pytest

from lqray.experiment.schema import Resources
from lqray.orchestration.launchers.placement import PlacementError
from lqray.orchestration.launchers.ray.machines import MachineWatch
from lqray.orchestration.launchers.ray.room import Machine, Room, places

GIB = 2.0**30


def machine(cpus=1.0, name="m", **fields) -> Machine:
    gpus = fields.pop("gpus", 0.0)
    there = {"CPU": cpus, **({"GPU": gpus} if gpus else {}), "memory": fields.pop("memory", 8 * GIB)}
    return Machine(name, name, there, **fields)


@pytest.mark.parametrize(
    ("there", "resources", "expected"),
    [
        ({"CPU": 5.0}, {"cpus_per_process": 2}, 2),
        ({}, {}, 0),  # a head that has no CPUs
        ({"CPU": 64.0, "GPU": 4.0}, {"gpus_per_process": 2}, 2),
        ({"CPU": 64.0, "GPU": 3.0}, {"gpus_per_process": 0.4}, 6),  # two on each, not 7.5
        ({"CPU": 64.0, "GPU": 2.0}, {"gpus_per_process": 0.1}, 20),
        ({"CPU": 64.0}, {"gpus_per_process": 0.1}, 0),
        ({"CPU": 64.0, "memory": 5 * GIB}, {"memory_gib_per_process": 2}, 2),
    ],
)
def test_places_of_a_machine(there, resources, expected):
    assert places(there, Resources(**resources)) == expected


def trials(machines, processes=1, limit=None, **resources) -> int:
    room = Room(processes, Resources(**resources), limit)
    room.see(machines)
    return room.trials


def test_a_process_is_on_one_machine_and_a_trial_may_be_on_several():
    assert trials([machine(3.0)] * 2, 2, cpus_per_process=2) == 1
    assert trials([machine(3.0)] * 5, 2, cpus_per_process=2) == 2  # not 15 // 4
    assert trials([machine(1.0)] * 4, 4) == 1
    assert trials([machine(64.0, gpus=1.0)] * 3, 2, gpus_per_process=0.4) == 3
    assert trials([machine(1.0)] * 4, concurrent_trials=3) == 3
    assert trials([machine(1.0)] * 2, concurrent_trials=3) == 2


def test_what_is_drained_holds_nothing_and_what_may_come_does():
    assert trials([machine(2.0), machine(2.0, drained=True)]) == 2
    assert trials([machine(2.0, drained=True)]) == 0
    limit = {"CPU": 8.0, "GPU": 2.0}
    assert trials([machine(0.0)], 2, limit) == 4
    assert trials([machine(0.0)], 2, limit, gpus_per_process=1) == 1
    assert trials([machine(0.0)], 2, limit, concurrent_trials=3) == 3
    assert trials([machine(12.0)], 2, limit) == 6  # it has grown beyond


def said(caplog, room: Room, machines, looks: int = 3, more: bool = True) -> list[str]:
    caplog.clear()
    for _ in range(looks):
        room.see(machines, more)
    return [record.getMessage() for record in caplog.records]


def test_lasting_changes_are_said_once(caplog):
    caplog.set_level(logging.WARNING)
    room = Room(2, Resources(cpus_per_process=1))
    assert said(caplog, room, [machine(4.0)]) == []
    assert said(caplog, room, [machine(6.0)], looks=2) == []  # not of every one of many that come
    assert room.trials == 3
    assert said(caplog, room, [machine(8.0)], looks=9) == ["the cluster has changed: trials at a time: 4, before 2"]
    assert said(caplog, room, [machine(1.0)], more=False) == []  # nothing waits
    (line,) = said(caplog, room, [machine(1.0)], looks=9)
    assert line == ("the cluster has no room for a trial now (2 processes of 1 CPU cores): trials wait for machines")
    (line,) = said(caplog, room, [machine(3.0)], looks=9)
    assert line == "there is room for trials again, 1 at a time: the sweep goes on"


def test_a_cluster_without_room_for_one_trial_is_an_error_at_the_start_only():
    room = Room(2, Resources(cpus_per_process=2))
    with pytest.raises(PlacementError, match="2 processes of 2 CPU cores each, .* the cluster's 4 have room for 0; "):
        room.check([machine(1.0)] * 4)
    room.check([machine(2.0)] * 2)
    room.check([machine(2.0, drained=True)] * 2)
    Room(2, Resources(), {"CPU": 2.0}).check([machine(0.0)])


class Queue:
    over = False

    def __init__(self):
        self.halted = []

    def halt(self, why):
        self.halted.append(why)


def test_the_watch_counts_names_what_is_drained_and_outlives_a_head_that_is_away(monkeypatch, caplog):
    machines = [machine(name="a"), machine(name="b")]
    room, queue, looks = Room(1, Resources()), Queue(), []

    def look():
        looks.append(1)
        if len(looks) < 4:
            raise OSError("away")
        return machines

    monkeypatch.setattr("lqray.orchestration.launchers.ray.machines._LOOK_SECONDS", 0.01)
    watch = MachineWatch(room, queue, look)
    with watch:
        while len(looks) < 6:
            watch._over.wait(0.01)
        assert (room.trials, watch.drained()) == (2, {})
        machines[1] = machine(name="b", drained=True)
        seen = len(looks)
        while len(looks) < seen + 3:
            watch._over.wait(0.01)
        assert (room.trials, watch.drained()) == (1, {"b": "b"})
    assert queue.halted == []
    assert not watch._thread.is_alive()


def test_with_a_machine_that_it_needs_the_sweep_ends_and_says_so_once(caplog):
    queue = Queue()
    head = machine(name="10.0.0.1", drained=True, gone_at=1e12, needed="the head of the Ray cluster")
    watch = MachineWatch(Room(1, Resources()), queue, lambda: [head, machine()])
    watch.look()
    watch.look()
    assert queue.halted == ["the head of the Ray cluster, 10.0.0.1, is being drained"]
    (record,) = caplog.records
    assert re.search(r"is being drained and gone in \d+ s, .* run the same command again", record.getMessage())
