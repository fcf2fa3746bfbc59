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


def told(last_result, outcomes, error=False):
    """Results of an end that Tune tells of twice."""
    from lqray.orchestration.launchers.ray.supply import Results

    named = SimpleNamespace(trial=SimpleNamespace(id="t"))
    queue, supply = Queue(), SimpleNamespace(works={"1": Work(named, "run", "folder")})
    results = Results(queue, supply, outcomes, result_of)
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
