"""Who runs a trial: claims by several launches on one store, and what becomes of them when a launch dies."""

import subprocess
import sys
import threading

import pytest
from mlflow import MlflowClient

from lqray.orchestration import leases
from lqray.orchestration.leases import Holder, Leases


@pytest.fixture
def store(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    return uri, MlflowClient(uri).create_experiment("e")


def test_a_trial_is_claimed_once_and_again_after_its_release(store):
    first, second = Leases(*store, "first"), Leases(*store, "second")
    assert first.claim("a") == 1
    assert second.claim("a") == 0
    assert second.holder("a").launch == first.me.launch
    assert second.claim("b") == 1
    first.release("a")
    assert second.claim("a") == 0  # it has not looked again
    second.look()
    assert second.claim("a") == 2
    assert first.claim("a") == 0


def test_of_launches_that_begin_together_one_has_each_trial(store):
    names, won, lock = [f"{number:04x}" for number in range(40)], [], threading.Lock()
    gate = threading.Barrier(4)

    def launch(number):
        gate.wait()
        mine = Leases(*store, str(number))
        for name in names:
            if mine.claim(name):
                with lock:
                    won.append(name)

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == names
    boards = MlflowClient(store[0]).search_experiments(filter_string="name = 'lqray-leases'")
    assert len(boards) == 1


def test_claims_of_a_process_that_died_are_void_at_once(store):
    code = (
        "import sys; from lqray.orchestration.leases import Leases\n"
        "assert Leases(sys.argv[1], sys.argv[2], 'gone').claim('a') == 1"
    )
    subprocess.run([sys.executable, "-c", code, *store], check=True, capture_output=True)
    assert Leases(*store, "here").claim("a") == 2


def test_claims_of_another_machine_last_as_long_as_its_counter_moves(store, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases, "_space", lambda: "another-machine")
        there = Leases(*store, "there")
        there.claim("a")
    monkeypatch.setattr(leases, "HOLDER_PATIENCE", 10.0)
    now = 0.0
    monkeypatch.setattr(leases.time, "monotonic", lambda: now)
    here = Leases(*store, "here")
    for moment in (1.0, 9.0, 18.0):
        now = moment
        there.beat()
        here.look()
        assert here.claim("a") == 0
    now = 27.0
    assert here.claim("a") == 0
    now = 28.5
    assert here.claim("a") == 2


def test_a_process_number_used_again_is_another_process():
    me = Holder.this_process("x")
    assert me.runs_here()
    assert Holder.parse(str(me)) == me
    assert Holder(me.launch, me.host, me.space, me.pid, "1").runs_here() is False
