"""Who runs a trial: claims by several launches on one store, and what becomes of them when a launch dies."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from lqray.orchestration.recording import claims, holder
from lqray.orchestration.recording.claims import Claims, Holder
from tests.testing.small import empty_store


@pytest.fixture
def store(tmp_path):
    uri = empty_store(tmp_path / "runs.db")
    return uri, MlflowClient(uri).create_experiment("e")


def test_a_trial_is_claimed_once_and_again_after_its_release(store):
    first, second = Claims(*store, "first"), Claims(*store, "second")
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
        mine = Claims(*store, str(number))
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
        "import sys; from lqray.orchestration.recording.claims import Claims\n"
        "assert Claims(sys.argv[1], sys.argv[2], 'gone').claim('a') == 1"
    )
    subprocess.run([sys.executable, "-c", code, *store], check=True, capture_output=True)
    assert Claims(*store, "here").claim("a") == 2


def test_what_is_no_claim_stops_nobody(store):
    first = Claims(*store, "first")
    client, board = MlflowClient(store[0]), first.board
    for key in ("claim", "claim.a", "claim.a.x", "claim.a.1.2", "x.y.z", "claim.a." + "9" * 200):
        client.log_param(board, key, "x")
    client.log_param(board, "claim.b.1", "no holder")
    client.log_param(board, "claim.c.1", "launch host space notanumber born")
    for key in ("released", "released.a.1", "released.b", "alive", "alive.x"):
        client.set_tag(board, key, "9" * 5000)
    client.set_tag(board, "released.c.1", "\u00b2")
    second = Claims(*store, "second")
    second.look()
    assert second.claim("a") == 1
    assert second.claim("c") == 2
    assert first.claim("c") == 0
    assert first.claim("b")


@pytest.fixture
def clock(monkeypatch):
    """The clock of claims, to be set."""
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(claims, "now", lambda: time.now)
    return time


def elsewhere(store, monkeypatch, name):
    """Another machine's launch."""
    with monkeypatch.context() as there:
        there.setattr(holder, "_space", lambda: "another-machine")
        return Claims(*store, name)


def watched(here, clock, seconds, there=None):
    """Time goes by, with heartbeats."""
    for _ in range(int(seconds / claims.HEARTBEAT_SECONDS)):
        clock.now += claims.HEARTBEAT_SECONDS
        if there:
            there.prove()
        here.prove()
        here.look()


def test_claims_of_another_machine_last_as_long_as_its_counter_moves(store, monkeypatch, clock):
    there = elsewhere(store, monkeypatch, "there")
    there.claim("a")
    here = Claims(*store, "here")
    assert here.claim("a") == 0
    assert not here.moved(there.me)  # not yet known
    watched(here, clock, 120, there)
    assert here.claim("a") == 0
    assert here.moved(there.me)
    assert here.holder("a") == there.me
    watched(here, clock, 25)
    assert here.claim("a") == 0
    watched(here, clock, 10)
    assert here.claim("a") == 2
    assert here.ours("a")


def test_a_store_that_was_away_is_held_against_nobody(store, monkeypatch, clock):
    there = elsewhere(store, monkeypatch, "there")
    there.claim("a")
    here = Claims(*store, "here")
    clock.now += 300  # nobody could reach the store
    here.look()
    assert here.claim("a") == 0
    there.prove()
    watched(here, clock, 25)
    assert here.claim("a") == 0
    assert there.ours("a")


def test_a_process_of_this_machine_that_stands_still_is_taken_over_and_notices(store, clock):
    stalled, here = Claims(*store, "stalled"), Claims(*store, "here")
    assert stalled.claim("a") == stalled.claim("b") == 1
    watched(here, clock, 35)
    assert here.claim("a") == 2
    # It wakes up: what it writes from now on, it first asks for.
    assert clock.now > stalled.valid_until
    assert stalled.ours("b")
    assert not stalled.ours("a")
    assert stalled.lost() == ["a"]
    assert here.ours("a")


def test_before_anybody_may_take_it_over_a_holder_no_longer_writes_without_asking(store, clock):
    mine = Claims(*store, "mine")
    mine.claim("a")
    asked = []
    mine.prove = lambda: asked.append(clock.now)
    clock.now += claims.HOLDER_PATIENCE - claims._MARGIN - 1
    assert mine.ours("a")
    assert not asked
    clock.now += 1
    mine.ours("a")
    assert asked


def test_a_late_release_does_not_make_a_later_claim_look_held(store, clock):
    stalled, here = Claims(*store, "stalled"), Claims(*store, "here")
    assert stalled.claim("a") == 1
    watched(here, clock, 35)
    assert here.claim("a") == 2
    here.release("a")
    stalled.release("a")
    third = Claims(*store, "third")
    assert third.holder("a") is None
    assert third.claim("a") == 3


def test_a_holder_that_wakes_while_its_trial_is_taken_has_time_to_stop(store, clock):
    stalled, here = Claims(*store, "stalled"), Claims(*store, "here")
    assert stalled.claim("a") == 1
    watched(here, clock, 35)
    write = here._write_once

    def wakes(key):
        stalled.prove()  # and finds the trial still its own
        assert stalled.ours("a")
        return write(key)

    here._write_once = wakes
    assert here.claim("a") == 0  # taken, but not to be begun yet
    clock.now += 1
    assert here.claim("a") == 0
    assert stalled.valid_until < clock.now + claims.HOLDER_PATIENCE
    clock.now += claims.HOLDER_PATIENCE
    assert not stalled.ours("a")
    assert here.claim("a") == 2


def test_claims_that_an_earlier_version_released_are_free(store):
    client, first = MlflowClient(store[0]), Claims(*store, "first")
    client.log_param(first.board, "claim.a.1", str(first.me))
    client.log_param(first.board, "claim.a.2", str(first.me))
    client.set_tag(first.board, "released.a", "2")
    assert Claims(*store, "second").claim("a") == 3


@pytest.mark.parametrize("what", ["board", "first", "experiment", "all, for good"])
def test_deleted_boards_block_nobody_and_lose_no_claim(store, what):
    client, mine = MlflowClient(store[0]), Claims(*store, "mine")
    assert mine.claim("a") == 1
    home = client.get_experiment_by_name("lqray-leases").experiment_id
    runs = client.search_runs([home])
    if what == "experiment":
        client.delete_experiment(home)
    else:
        for run in runs:
            if what.startswith("all") or (run.info.run_id == mine.board) == (what == "board"):
                client.delete_run(run.info.run_id)
    if what.startswith("all"):
        for run in runs:
            client._tracking_client.store._hard_delete_run(run.info.run_id)
    mine.prove()
    other = Claims(*store, "other")
    assert other.claim("a") == 0
    assert other.claim("b") == 1
    assert mine.ours("a")
    mine.look()
    assert mine.claim("b") == 0
    mine.release("a")
    other.look()
    assert other.claim("a") == 2


def test_a_process_number_used_again_is_another_process():
    me = Holder.this_process("x")
    assert me.runs_here()
    assert Holder.parse(str(me)) == me
    assert Holder(me.launch, me.host, me.space, me.pid, "1").runs_here() is False
