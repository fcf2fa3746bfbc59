"""A rank that lives but does not come to a collective is named by those that wait for it."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from lqray.communication import RankStalledError, naming_stalled_ranks
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes


def stalls(rank: int, stalled: int) -> str:
    group = dist.new_group(timeout=timedelta(seconds=2))
    try:
        with naming_stalled_ranks(group):
            dist.all_reduce(torch.ones(1), group=group)
            if rank == stalled:
                time.sleep(8)
                return "slept"
            dist.all_reduce(torch.ones(1), group=group)
    except RankStalledError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("stalled", [0, 1])
def test_the_rank_that_stalls_is_named(stalled):
    said = run_ranks(stalls, 2, stalled)
    assert said[stalled] == "slept"
    assert f"rank {stalled} of 2 did not come to a collective" in said[1 - stalled]


def breaks(rank: int) -> str:
    try:
        with naming_stalled_ranks(dist.group.WORLD):
            raise RuntimeError("mine")
    except RankStalledError:
        return "renamed"
    except RuntimeError as error:
        return str(error)


def test_other_errors_stay_what_they_are():
    assert run_ranks(breaks, 2) == ["mine", "mine"]
