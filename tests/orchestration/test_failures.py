"""What an error is taken for: its kind, its line, and which rank is blamed."""

import pytest

from lqray.orchestration.failures import (
    CodeChangedError,
    Failure,
    ProcessEndedError,
    ProcessLostError,
    failure_of,
    lost,
    root_cause,
)


class RankStalledError(RuntimeError): ...


class DistBackendError(RuntimeError): ...


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv"


def raised(error: BaseException, rank: int = 0) -> Failure:
    try:
        raise error
    except BaseException as caught:
        return failure_of(caught, rank)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO} operation to complete\n\nAt:\n  /lqray/communication/exchange.py(138): <lambda>\n"),
        RuntimeError("[/pytorch/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"),
        DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:268, unhandled system error"),
        RankStalledError("rank 1 of 2 did not come"),
    ],
)
def test_errors_of_collectives_are_infrastructure_and_tried_again(error):
    failure = raised(error)
    assert failure.kind == "infrastructure"
    assert failure.retry


def test_the_same_words_in_an_error_of_another_class_are_a_users():
    assert raised(ValueError("Timed out waiting for my own server")).kind == "user_error"
    assert raised(RuntimeError("mat1 and mat2 shapes cannot be multiplied")).kind == "user_error"


def test_the_headline_is_what_the_error_says_and_not_where():
    of_a_future = RuntimeError(
        f"{GLOO} operation to complete\n\nAt:\n  /lqray/communication/exchange.py(138): <lambda>\n"
    )
    assert raised(of_a_future).error == f"RuntimeError: {GLOO} operation to complete"
    assert raised(ValueError("a list:\n  first\n  second")).error == "ValueError: a list: first"
    assert raised(KeyError("x")).error == "KeyError: 'x'"
    assert raised(ValueError()).error == "ValueError"
    assert "exchange.py(138)" in raised(of_a_future).traceback


@pytest.mark.parametrize("stalled", [0, 1])
def test_a_rank_that_the_launch_ended_is_never_blamed(stalled):
    waited = raised(RankStalledError(f"rank {stalled} of 2 did not come"), 1 - stalled)
    ended = raised(ProcessEndedError(f"lqray ended the process of rank {stalled}"), stalled)
    cause = root_cause({1 - stalled: waited, stalled: ended})
    assert cause.error.endswith(f"rank {stalled} of 2 did not come")
    assert cause.rank == 1 - stalled
    assert f"lqray ended the process of rank {stalled}" in cause.traceback
    assert cause.retry


def test_a_users_error_outranks_what_came_of_it():
    cause = root_cause(
        {
            0: raised(ProcessEndedError("lqray ended rank 0"), 0),
            1: raised(ProcessLostError("rank 1 was killed by SIGKILL"), 1),
            2: raised(RankStalledError("rank 1 did not come"), 2),
        }
    )
    assert cause.error.endswith("rank 1 was killed by SIGKILL")


def test_other_code_is_a_kind_of_its_own_that_no_retry_mends():
    failure = raised(CodeChangedError("here 1, there 2"))
    assert failure.kind == "code_changed"
    assert not failure.retry


class RankLostError(RuntimeError): ...


class DivergedError(RuntimeError): ...


def test_failures_are_sorted_and_blamed():
    assert raised(ValueError("x")).kind == "user_error"
    assert raised(MemoryError()).kind == "out_of_memory"
    assert raised(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")).kind == "out_of_memory"
    assert raised(DivergedError("x")).kind == "non_finite"
    assert raised(RankLostError("x")).kind == "infrastructure"
    assert lost("ray.exceptions.OutOfMemoryError: ...").kind == "out_of_memory"
    assert lost("the driver died").retry
    cause = root_cause({0: raised(RankLostError("rank 1"), 0), 1: raised(ValueError("mine"), 1)})
    assert (cause.kind, cause.rank, cause.error) == ("user_error", 1, "ValueError: mine")
    both = root_cause({0: raised(RankLostError("a"), 0), 2: raised(RankLostError("b"), 2)})
    assert both.retry
    assert "rank 0:" in both.traceback
