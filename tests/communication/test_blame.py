"""Who is named when ranks differ, or when one is gone."""

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from lqray.communication import LevelsDifferError, RankLostError, naming_lost_ranks
from lqray.communication.wire.collectives import who_differs
from lqray.communication.wire.parcel import CheckWords
from tests.testing.copies import CONTEXT
from tests.testing.ranks import run_ranks


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([7, 7, 7], ""),
        ([7], ""),
        ([7, 8], "rank 0 and rank 1 differ from each other, and no majority of the 2 ranks says who is right"),
        ([7, 8, 7], "rank 1 of 3 differs from the rest"),
        ([8, 7, 7], "rank 0 of 3 differs from the rest"),
        ([7, 8, 7, 9, 7], "rank 1, 3 of 5 differs from the rest"),
        ([7, 8, 8, 7], "rank 0, 3 and rank 1, 2 differ from each other"),
        ([7, 8, 9], "rank 0 and rank 1 and rank 2 differ from each other"),
    ],
)
def test_ranks_are_blamed_by_a_majority_alone(values, said):
    assert who_differs(values).startswith(said)
    assert bool(who_differs(values)) == bool(said)


@pytest.mark.parametrize("workers", [1, 2])
def test_check_words_of_two_ranks_blame_neither(workers):
    words = torch.tensor([[1, 2, 3, 4]] * workers + [[1, 2, 3, 5]] * workers, dtype=torch.uint8)
    with pytest.raises(LevelsDifferError, match="rank 0 and rank 1 differ from each other") as caught:
        CheckWords().compare(words, workers)
    assert "the rest" not in str(caught.value)
    CheckWords().compare(words[:workers], workers)


def raised(group, error: Exception | None = None) -> str:
    """What becomes of an error within."""
    try:
        with naming_lost_ranks(group):
            if error:
                raise error
    except RuntimeError as seen:
        return f"{type(seen).__name__}: {seen}"
    return ""


def called(rank: int) -> dict[str, str]:
    """Three ranks that have been in different numbers of roll calls."""
    world, said = dist.group.WORLD, {}
    pair = dist.new_group([1, 2])
    for _ in range(3 * rank):
        raised(world)
    if rank == 1:
        raised(pair)
    dist.barrier()
    broken = RuntimeError("connection closed")
    # All of them come, and two fail while the third is still at it.
    with naming_lost_ranks(world):
        dist.barrier()
        time.sleep(4 if rank == 1 else 0)
        said["alive"] = "" if rank == 1 else raised(world, broken)
    dist.barrier()
    # Rank 1 never comes.
    said["lost"] = "" if rank == 1 else raised(world, broken)
    said["pair"] = "" if rank != 2 else raised(pair, broken)
    return said


@pytest.mark.processes
def test_the_rank_that_does_not_answer_is_named_whatever_was_before():
    said = run_ranks(called, 3)
    for rank in (0, 2):
        assert said[rank]["alive"] == "RuntimeError: connection closed"
        assert said[rank]["lost"].startswith("RankLostError: rank 1 of 3 ended or cannot be reached")
    assert said[2]["pair"].startswith("RankLostError: rank 0 of 2 ended or cannot be reached, and this rank, 1 of 2,")


def finished_before(rank: int) -> str:
    """Both have begun, and rank 1 has come to its end when rank 0 fails."""
    store = dist.distributed_c10d._get_default_store()
    with naming_lost_ranks(dist.group.WORLD):
        dist.barrier()
    dist.barrier()
    if rank == 1:
        with naming_lost_ranks(dist.group.WORLD):
            dist.barrier()
        store.set("rank 1 has left", "")
        return ""
    try:
        with naming_lost_ranks(dist.group.WORLD):
            dist.barrier()
            store.wait(["rank 1 has left"])
            raise RuntimeError("a fault of rank 0")
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.processes
def test_a_rank_that_has_finished_is_not_lost():
    assert run_ranks(finished_before, 2)[0] == "RuntimeError: a fault of rank 0"


def holding(rank: int, port: int, holder: int, members: list[int], queue) -> None:
    """The rank that holds the store is killed while the members of a group wait for something."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 3, rank == holder, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    group = dist.new_group(members)
    dist.barrier()
    if rank not in members:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with naming_lost_ranks(group):
            time.sleep(2)
            if rank == holder:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2)
            raise RuntimeError("connection closed")
    except RankLostError as error:
        queue.put((rank, str(error)))
    queue.close()
    queue.join_thread()
    os._exit(0)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("holder", "members", "said"),
    [(2, [0, 1, 2], "rank 2 of 3, which holds the group's store,"), (0, [1, 2], "the process that holds the group's")],
)
def test_whoever_holds_the_store_is_named_and_nobody_else(holder, members, said):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=holding, args=(rank, port, holder, members, queue)) for rank in range(3)]
    for process in processes:
        process.start()
    survivors = set(members) - {holder}
    found = dict(queue.get(timeout=120) for _ in survivors)
    for process in processes:
        process.join(60)
    assert set(found) == survivors
    assert all(message.startswith(said) for message in found.values()), found
