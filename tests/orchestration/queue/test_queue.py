"""The queue of trials, with a launcher of threads and a recorder in memory."""

import signal
import threading
import time

import pytest

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.failures import Failure
from lqray.orchestration.launchers.contract import Held, TrialResult, Work
from lqray.orchestration.queue.limits import Limits
from lqray.orchestration.queue.queue import TrialQueue
from lqray.orchestration.queue.sources import Given


class FakeTrial:
    def __init__(self, number: int):
        self.id = f"{number:04d}"


class FakeRecorder:
    """Begins everything but what is held elsewhere."""

    def __init__(self, held=()):
        self.begun, self.ended, self.retried, self.held = [], [], [], set(held)
        self.answers: dict[str, Held] = {}
        self.lost: set[str] = set()

    def begin(self, named):
        if named.name in self.held:
            return self.answers.get(named.name)
        self.begun.append(named.name)
        return Work(named, "run", "folder")

    def retry(self, work, result):
        self.retried.append(work.named.name)

    def gone(self, work):
        return False

    def settled(self, work, result):
        return result

    def end(self, work, result):
        if work.named.name in self.lost:
            return Held()
        self.ended.append((work.named.name, result.status))
        return None


class Quiet:
    def started(self, named, continued): ...
    def progressed(self, trial_id, report): ...
    def retrying(self, named, failure, seconds): ...
    def moving(self, named, why): ...
    def ended(self, result): ...


def trials(count: int) -> list[NamedTrial]:
    return [NamedTrial(str(number), FakeTrial(number)) for number in range(count)]


def queue_of(given, recorder, results=None, **limits) -> TrialQueue:
    return TrialQueue(
        Given(given), recorder, Quiet(), (results if results is not None else []).append, Limits(**limits)
    )


def finished(work: Work) -> TrialResult:
    return TrialResult(work.named, "FINISHED")


def failed(work: Work, kind: str) -> TrialResult:
    return TrialResult(work.named, "FAILED", failure=Failure(kind, "it", "it"))


class Threads:
    """A launcher of `concurrent` threads; `outcome` says how a trial ends."""

    def __init__(self, concurrent: int, outcome=finished):
        self.concurrent, self.outcome = concurrent, outcome
        self.running = self.most = 0
        self.lock = threading.Lock()

    def launch(self, queue: TrialQueue) -> None:
        threads = [threading.Thread(target=self.work, args=(queue,)) for _ in range(self.concurrent)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def work(self, queue: TrialQueue) -> None:
        while not queue.over:
            work = queue.take()
            if work is None:
                time.sleep(0.001)
                continue
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.01)
            with self.lock:
                self.running -= 1
            queue.ended(self.outcome(work))


def test_five_hundred_trials_keep_order_and_concurrency():
    recorder, results, launcher = FakeRecorder(held={"17", "400"}), [], Threads(8)
    launcher.launch(queue_of(trials(500), recorder, results))
    expected = [str(number) for number in range(500) if number not in (17, 400)]
    assert recorder.begun == expected
    assert sorted(result.named.name for result in results) == sorted(expected)
    assert launcher.most == 8


def test_only_infrastructure_is_tried_again_and_not_for_ever():
    tries: dict[str, int] = {}

    def outcome(work):
        count = tries[work.named.name] = tries.get(work.named.name, 0) + 1
        if work.named.name == "0":
            return failed(work, "infrastructure") if count < 3 else finished(work)
        return failed(work, {"1": "infrastructure", "2": "user_error", "3": "non_finite"}[work.named.name])

    recorder, results = FakeRecorder(), []
    Threads(2, outcome).launch(queue_of(trials(4), recorder, results, backoff=0.001))
    assert tries == {"0": 3, "1": 4, "2": 1, "3": 1}
    assert dict(recorder.ended) == {"0": "FINISHED", "1": "FAILED", "2": "FAILED", "3": "FAILED"}
    assert len(results) == 4


def test_a_retry_waits_and_others_go_on():
    recorder = FakeRecorder()
    queue = queue_of(trials(2), recorder, backoff=0.2)
    first = queue.take()
    queue.ended(failed(first, "infrastructure"))
    second = queue.take()
    assert second.named.name == "1"
    queue.ended(finished(second))
    assert queue.take() is None
    assert not queue.over
    time.sleep(0.25)
    assert queue.take().named.name == "0"


def test_max_failures_begins_no_more():
    recorder = FakeRecorder()
    Threads(1, lambda work: failed(work, "user_error")).launch(queue_of(trials(10), recorder, max_failures=3))
    assert recorder.begun == ["0", "1", "2"]


def test_interrupt_kills_what_runs_and_ends_are_counted_once():
    recorder, results = FakeRecorder(), []
    queue = queue_of(trials(3), recorder, results)
    work = queue.take()
    queue.interrupt()
    queue.ended(finished(work))
    assert recorder.ended == [("0", "KILLED")]
    assert queue.over
    assert queue.take() is None


def test_stop_and_want():
    recorder = FakeRecorder()
    queue = queue_of(trials(4), recorder)
    queue.take()
    queue.stop(lambda named: named.name in "01", "because")
    assert queue.stop_reason("0000") == "because"
    assert queue.take().named.name == "2"
    assert queue.stop_reason("0002") is None
    queue.want(lambda named: named.name != "3")
    assert queue.take() is None


def test_a_newer_plan_does_not_undo_a_stop():
    recorder = FakeRecorder()
    queue = queue_of(trials(4), recorder)
    queue.stop(lambda named: named.name in "13", "lqray stop")
    queue.want(lambda named: named.name != "0", "the file was launched again without it")
    queue.stop(lambda named: named.name == "none", "lqray stop")
    assert [work.named.name for work in iter(queue.take, None)] == ["2"]
    assert {named.name: why for named, why in queue.left_out.values()} == {
        "0": "the file was launched again without it",
        "1": "lqray stop",
        "3": "lqray stop",
    }


def taken(queue, seconds=0.5) -> list[str]:
    """What the queue gives within a while, or until it is over."""
    found, deadline = [], time.monotonic() + seconds
    while not queue.over and time.monotonic() < deadline:
        work = queue.take()
        if work:
            found.append(work.named.name)
            queue.ended(finished(work))
        time.sleep(0.001)
    return found


def test_trials_of_other_launches_are_offered_again_after_the_others():
    recorder = FakeRecorder(held="02")
    recorder.answers = {"0": Held(), "2": Held()}
    queue = queue_of(trials(4), recorder, held=0.04)
    assert taken(queue, 0.2) == ["1", "3"]
    assert not queue.over  # whether their launch lives is not known: they are waited for
    recorder.held.remove("2")
    assert taken(queue, 0.2) == ["2"]
    recorder.answers = {}  # its launch has finished it
    assert taken(queue, 60) == []
    assert queue.over
    assert not queue.elsewhere


def test_trials_are_left_to_a_launch_that_works_once_nothing_else_is_to_do():
    recorder = FakeRecorder(held="0")
    recorder.answers = {"0": Held(works=True)}
    queue = queue_of(trials(2), recorder, held=0.1)
    work = queue.take()
    assert work.named.name == "1"
    time.sleep(0.2)
    assert queue.take() is None
    assert not queue.elsewhere  # one of its own trials still runs
    queue.ended(finished(work))
    assert not queue.over
    assert taken(queue, 60) == []
    assert [named.name for named, _ in queue.elsewhere.values()] == ["0"]


def test_a_trial_that_was_taken_over_is_not_recorded_and_offered_again():
    recorder, results = FakeRecorder(), []
    queue = queue_of(trials(1), recorder, results, held=0.04)
    work = queue.take()
    queue.lose("0000")
    assert queue.stop_reason("0000")
    recorder.lost.add("0")
    queue.ended(finished(work))
    drained(queue)
    assert not recorder.ended
    assert not results
    assert not queue.over
    recorder.lost.clear()
    assert taken(queue, 60) == ["0"]
    assert [result.status for result in results] == ["FINISHED"]


@pytest.mark.parametrize("count", [0, 1])
def test_over(count):
    queue = queue_of(trials(count), FakeRecorder())
    assert queue.over == (count == 0)


def drained(queue: TrialQueue) -> None:
    deadline = time.monotonic() + 60
    while queue._recording:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting_for_a_retry(recorder, results, **limits) -> TrialQueue:
    """Of three trials the first waits, the second runs."""
    queue = queue_of(trials(3), recorder, results, backoff=600, **limits)
    queue.ended(failed(queue.take(), "infrastructure"))
    assert queue.take().named.name == "1"
    return queue


def test_trials_that_wait_for_a_retry_end_with_the_launch():
    """Before, they stayed RUNNING and claimed."""
    recorder, results = FakeRecorder(), []
    waiting_for_a_retry(recorder, results).interrupt()
    assert sorted(recorder.ended) == [("0", "KILLED"), ("1", "KILLED")]
    assert sorted(result.named.name for result in results) == ["0", "1"]


def test_trials_that_wait_for_a_retry_are_stopped():
    recorder, results = FakeRecorder(), []
    queue = waiting_for_a_retry(recorder, results)
    queue.stop(lambda named: named.name in "01", "lqray stop")
    drained(queue)
    assert recorder.ended == [("0", "KILLED")]
    assert results[0].stopped == "lqray stop"
    queue.ended(failed(Work(trials(2)[1], "run", "folder"), "infrastructure"))  # as it stopped: no second try
    drained(queue)
    assert recorder.ended == [("0", "KILLED"), ("1", "FAILED")]
    queue.want(lambda named: True)
    assert queue.take().named.name == "2"


def test_a_stop_outlives_a_newer_plan():
    queue = queue_of(trials(2), FakeRecorder())
    queue.stop(lambda named: named.name == "0", "lqray stop")
    queue.want(lambda named: True)
    assert queue.take().named.name == "1"


def test_trials_that_wait_for_a_retry_fail_with_max_failures():
    recorder, results = FakeRecorder(), []
    queue = waiting_for_a_retry(recorder, results, max_failures=1)
    queue.ended(failed(Work(trials(2)[1], "run", "folder"), "user_error"))
    drained(queue)
    assert sorted(recorder.ended) == [("0", "FAILED"), ("1", "FAILED")]
    assert {result.failure.kind for result in results} == {"infrastructure", "user_error"}
    assert queue.over


class SlowRecorder(FakeRecorder):
    """Waits for the store with everything, until `there` is set."""

    def __init__(self):
        super().__init__()
        self.there = threading.Event()

    def end(self, work, result):
        assert self.there.wait(60)
        super().end(work, result)

    def begin(self, named):
        if named.name == "2":
            assert self.there.wait(60)
        return super().begin(named)


def test_nothing_waits_for_a_store_that_is_away():
    """Before, all of it did, under one lock."""
    recorder = SlowRecorder()
    queue = queue_of(trials(3), recorder)
    queue.ended(finished(queue.take()))
    assert queue.take().named.name == "1"
    assert queue.running_ids == ["0001"]
    assert queue.stop_reason("0001") is None
    assert queue.take(patience=0.01) is None
    assert not queue.over
    queue.ended(finished(Work(trials(2)[1], "run", "folder")))
    assert recorder.ended == []
    recorder.there.set()
    assert queue.take().named.name == "2"
    drained(queue)
    assert sorted(recorder.ended) == [("0", "FINISHED"), ("1", "FINISHED")]


def test_a_trial_whose_metrics_are_not_stored_is_not_finished():
    class Unsettled(FakeRecorder):
        def settled(self, work, result):
            if result.status == "FINISHED" and len(self.begun) < 2:
                return failed(work, "infrastructure")
            return result

    recorder, results = Unsettled(), []
    Threads(1).launch(queue_of(trials(1), recorder, results, backoff=0.001))
    assert recorder.begun == ["0", "0"]
    assert recorder.retried == ["0"]
    assert [result.status for result in results] == ["FINISHED"]


@pytest.mark.parametrize("where", ["begin", "settled", "end"])
def test_an_error_of_the_store_ends_the_launch_once_and_is_said(where):
    recorder, results = FakeRecorder(), []
    queue = queue_of(trials(3), recorder, results)
    first = queue.take()

    def fails(*_):
        raise ConnectionError("away")

    setattr(recorder, where, fails)
    if where == "begin":
        with pytest.raises(ConnectionError, match="away"):
            queue.take()
        assert queue.running_ids == ["0000"]
    else:
        queue.ended(finished(first))
        drained(queue)
        with pytest.raises(ConnectionError, match="away"):
            queue.take()
    assert queue.over
    with pytest.raises(ConnectionError, match="away"):
        queue.interrupt()
    assert recorder.ended == ([("0", "KILLED")] if where == "begin" else [])


def test_ctrl_c_cuts_no_record_short():
    """Before, a trial whose end was being recorded, or that was being begun, stayed RUNNING."""
    recorder = SlowRecorder()
    queue = queue_of(trials(1), recorder)
    work = queue.take()
    timer = threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.6, recorder.there.set).start()
    timer.start()
    try:
        queue.ended(finished(work))
        with pytest.raises(KeyboardInterrupt):
            queue.interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    assert recorder.ended == [("0", "FINISHED")]


def test_a_trial_that_runs_too_long_is_to_stop_and_is_not_tried_again():
    recorder = FakeRecorder()
    queue = TrialQueue(Given(trials(2)), recorder, Quiet(), lambda result: None, Limits(backoff=0, trial_seconds=0.2))
    first = queue.take()
    assert queue.stop_reason("0000") is None
    assert queue.stop_reason("0001") is None
    time.sleep(0.3)
    assert queue.stop_reason("0000") == "resources.trial_time_limit: 0.2 s are over"
    queue.take()
    assert queue.stop_reason("0001") is None  # it has just begun
    queue.ended(TrialResult(first.named, "FAILED", failure=Failure("infrastructure", "it", "it")))
    queue.interrupt()
    assert recorder.retried == []
    assert dict(recorder.ended) == {"0": "FAILED", "1": "KILLED"}


class Watching(Quiet):
    def __init__(self):
        self.moves = []

    def moving(self, named, why):
        self.moves.append((named.name, why))


def moved(work: Work) -> TrialResult:
    return TrialResult(work.named, "KILLED", stopped="its machine is being drained", moves=True)


def test_a_trial_that_moves_comes_next_and_is_no_failure():
    """However often; of its retries none is used up."""
    recorder, results, observer = FakeRecorder(), [], Watching()
    queue = TrialQueue(Given(trials(2)), recorder, observer, results.append, Limits(max_failures=1, backoff=0.001))
    work = queue.take()
    for _ in range(5):
        queue.ended(moved(work))
        work = queue.take()
        assert work.named.name == "0"
    for _ in range(3):
        queue.ended(failed(work, "infrastructure"))
        time.sleep(0.1)
        work = queue.take()
        assert work.named.name == "0"
    queue.ended(finished(work))
    queue.ended(finished(queue.take()))
    queue.interrupt()
    assert sorted(recorder.ended) == [("0", "FINISHED"), ("1", "FINISHED")]
    assert sorted(result.status for result in results) == ["FINISHED", "FINISHED"]
    assert queue.failed == 0
    assert observer.moves == [("0", "its machine is being drained")] * 5


def test_a_trial_that_moves_ends_where_the_sweep_does_or_somebody_stops_it():
    recorder, results = FakeRecorder(), []
    queue = queue_of(trials(3), recorder, results)
    first, second = queue.take(), queue.take()
    queue.stop(lambda named: named.name == "0", "lqray stop")
    queue.ended(moved(first))
    queue.ended(moved(second))
    queue.interrupt()
    assert sorted(recorder.ended) == [("0", "KILLED"), ("1", "KILLED")]
    assert queue.over


def test_after_halt_what_runs_is_to_stop_and_nothing_begins():
    recorder, results = FakeRecorder(), []
    queue = queue_of(trials(4), recorder, results, backoff=1000)
    first, second = queue.take(), queue.take()
    queue.ended(failed(second, "infrastructure"))
    queue.halt("the head is being drained")
    assert queue.stop_reason(first.named.trial.id) == "the head is being drained"
    assert queue.take() is None
    assert queue.over
    queue.ended(TrialResult(first.named, "KILLED", stopped=queue.stop_reason(first.named.trial.id)))
    queue.interrupt()
    assert sorted(recorder.ended) == [("0", "KILLED"), ("1", "KILLED")]
    assert queue.halted == "the head is being drained"
