"""The last line of a failure names the process that died."""

import pytest

from lqray.orchestration.failures import failure_of
from lqray.orchestration.launchers.ray.deaths import death, failure_of_death, failure_of_rank

DIED = """ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: TrialDriver
\tactor_id: 9fb6083944f02a9ca6b4522201000000
\tpid: 10088
\tname: x
\tnamespace: b94c2fdb
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: DETAIL"""
LOW = (
    "Task was killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was 1.2GB / 5.0GB (0.25)"
)


@pytest.mark.parametrize(
    ("detail", "cause"),
    [
        ("Worker unexpectedly exits with a connection error code 2. End of file.", "was killed (SIGKILL or a crash"),
        ("Worker exits with an exit code 137. It may be", "ended with exit code 137"),
        (LOW, "ran low on memory"),
    ],
)
def test_a_driver_that_died_is_named(detail, cause):
    failure = failure_of_death(DIED.replace("DETAIL", detail))
    assert failure.error.startswith("the driver of the trial (process 10088 on 192.0.2.2) ")
    assert cause in failure.error
    assert failure.kind == ("out_of_memory" if detail == LOW else "infrastructure")
    assert failure.retry == (detail != LOW)


def test_one_that_never_ran_is_named_by_what_it_was():
    text = "TuneError: The actor never ran - it was cancelled before it started running."
    assert (
        death(text, "the driver of the trial")
        == "the driver of the trial was killed, or its node was, while it started"
    )


def test_a_rank_that_died_is_named_and_its_own_errors_stay():
    ray = pytest.importorskip("ray")
    failure = failure_of_rank(ray.exceptions.RayActorError(error_msg=DIED.replace("TrialDriver", "RayTrainWorker")), 1)
    assert failure.rank == 1
    assert failure.host == "192.0.2.2"
    assert failure.error.startswith("a worker of the trial (process 10088 on 192.0.2.2) ")
    own = MemoryError("CUDA out of memory")
    assert failure_of_rank(own, 0) == failure_of(own, 0)
