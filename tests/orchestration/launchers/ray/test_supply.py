"""What Tune says of an end, and what the queue is told; without Ray's processes."""

from types import SimpleNamespace

import pytest

from lqray.orchestration.launchers.contract import Work
from lqray.orchestration.launchers.outcomes import result_of
from lqray.orchestration.worker.task import Outcome

ray = pytest.importorskip("ray")


class Queue:
    def __init__(self):
        self.told = []

    def ended(self, result):
        self.told.append(result)

    def stop_reason(self, trial_id):
        return None


class Trials:
    """A queue that has so many trials, and counts what was taken."""

    def __init__(self, count):
        self.left = count

    def take(self, patience):
        self.left -= 1
        return (
            Work(SimpleNamespace(trial=SimpleNamespace(id=str(self.left))), "run", "folder") if self.left >= 0 else None
        )

    @property
    def over(self):
        return self.left < 0


def told(last_result, outcomes, error=False):
    """Results of an end that Tune tells of twice."""
    from lqray.orchestration.launchers.ray.channel import Ended
    from lqray.orchestration.launchers.ray.supply import Results

    named = SimpleNamespace(trial=SimpleNamespace(id="t"))
    queue, supply = Queue(), SimpleNamespace(works={"1": Work(named, "run", "folder")})
    results = Results(queue, supply, lambda work: Ended(one) if (one := outcomes(work)) else None, result_of)
    trial = SimpleNamespace(trial_id="1", last_result=last_result, error_file=None)
    for _ in range(2):
        (results.on_trial_error if error else results.on_trial_complete)(0, [], trial)
    (only,) = queue.told
    return only


EVALUATION, LAST = {"iteration": 40, "done": True}, {"done": True}


def test_early_is_only_what_tune_stopped():
    """Before, an end whose word was lost was taken for early stopping, and the trial never continued."""
    stopped = told(EVALUATION, lambda work: None)
    assert (stopped.status, stopped.early, stopped.stopped) == ("KILLED", True, "early stopping after 40 iterations")
    lost = told(LAST, lambda work: None)
    assert (lost.status, lost.early, lost.failure.retry) == ("FAILED", False, True)
    assert told(LAST, lambda work: {0: Outcome({"a": 1.0})}).status == "FINISHED"
    assert told(None, lambda work: None, error=True).failure.retry


@pytest.mark.parametrize("last", [EVALUATION, LAST])
def test_an_error_of_rays_is_an_end_that_was_not_heard(last):
    def fails(work):
        raise ray.exceptions.RayActorError

    assert told(last, fails).failure.retry


def test_no_more_trials_begin_than_there_is_room_for_now():
    """Room comes and goes while trials run."""
    from ray.tune.search import Searcher

    from lqray.orchestration.launchers.ray.supply import Supply

    queue, room, stopped = Trials(4), [1], []
    supply = Supply(queue, lambda work: {"work": work}, lambda: room[0], lambda: bool(stopped))
    assert supply.suggest("a")
    assert supply.suggest("b") is None
    assert queue.left == 3  # nothing is taken that cannot begin
    room[0] = 3
    assert supply.suggest("b")
    assert supply.suggest("c")
    room[0] = 1  # machines have left: those that run go on, and the next begins when one is the most again
    for ended in ("a", "b"):
        assert supply.suggest("d") is None
        supply.works.pop(ended)
    room[0] = 0
    supply.works.pop("c")
    assert supply.suggest("d") is None
    room[0] = 1
    assert supply.suggest("d")
    stopped.append(True)
    assert supply.suggest("e") == Searcher.FINISHED
    supply.works.clear()
    stopped.clear()
    assert supply.suggest("e") == Searcher.FINISHED  # nothing is left


def test_a_trial_whose_machine_is_drained_moves_and_one_that_had_to_stop_does_not():
    from lqray.orchestration.launchers.ray.channel import Ended
    from lqray.orchestration.launchers.ray.supply import Results

    named = SimpleNamespace(trial=SimpleNamespace(id="t"))

    def result(outcome, asked=None):
        queue, supply = Queue(), SimpleNamespace(works={"1": Work(named, "run", "folder")})
        queue.stop_reason = lambda trial_id: asked
        ended = Ended({0: outcome}, drained="10.0.0.2")
        trial = SimpleNamespace(trial_id="1", last_result=LAST, error_file=None)
        Results(queue, supply, lambda work: ended, result_of).on_trial_complete(0, [], trial)
        return queue.told[0]

    moved = result(Outcome(stopped=""))
    assert (moved.status, moved.moves, moved.stopped) == ("KILLED", True, "its machine 10.0.0.2 is being drained")
    asked = result(Outcome(stopped=""), "lqray stop")
    assert (asked.status, asked.moves, asked.stopped) == ("KILLED", False, "lqray stop")
    early = result(Outcome(stopped="test/loss > 1"))
    assert (early.status, early.moves, early.early) == ("KILLED", False, True)
    assert result(Outcome({"a": 1.0})).status == "FINISHED"
