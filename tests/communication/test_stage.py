"""What an exchange takes of the system, it gives back when it is closed."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lqray.communication import GradientExchange
from lqray.communication.wire.stage import Stage
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes

WITH_STAGES = [{"reduction": "scatter_reduce"}, {"entropy": "rans"}, {"reduction": "scatter_reduce", "entropy": "rans"}]


def held() -> tuple[int, int, int]:
    """Descriptors, threads and process groups of this process."""
    groups = len(dist.distributed_c10d._world.pg_map)
    own = Path("/proc/self")
    return len(list((own / "fd").iterdir())), len(list((own / "task").iterdir())), groups


def used_and_closed(rank: int, options: dict) -> list[tuple[int, int, int]]:
    """What is held before any exchange and after each of ten was made, used and closed."""
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(rank))
    dist.barrier()
    counts = [held()]
    for _ in range(10):
        exchange = GradientExchange(
            Quantizer.create("qsgd_inf", bucket_size=64), ExchangeOptions(**options), dist.group.WORLD, [rank]
        )
        exchange.begin_step(0)
        exchange.exchange([gradient], 0).wait()
        exchange.close()
        exchange.close()
        dist.barrier()
        if len(counts) == 1:
            time.sleep(1)
        # A thread that was joined may stand in /proc a moment longer.
        deadline = time.monotonic() + 10
        while len(counts) > 1 and held() != counts[1] and time.monotonic() < deadline:
            time.sleep(0.05)
        counts.append(held())
    return counts


@pytest.mark.parametrize("options", WITH_STAGES, ids=lambda options: "-".join(options.values()))
def test_a_closed_exchange_leaves_no_descriptor_thread_or_group(options):
    for counts in run_ranks(used_and_closed, 2, options):
        assert counts[-1] == counts[1]  # the first use starts what torch keeps for the process
        descriptors, threads, groups = (after - before for before, after in zip(counts[0], counts[-1], strict=True))
        assert groups == 0
        assert descriptors <= 2
        assert threads <= 2


def after_other_groups(rank: int) -> int:
    """Ranks that are in different numbers of groups, which torch names by number, make a stage together."""
    alone = [dist.new_group([0], use_local_synchronization=True) for _ in range(3)] if rank == 0 else []
    stage = Stage(dist.group.WORLD)
    total = torch.ones(1)
    stage.submit(total.device, lambda: dist.all_reduce(total, group=stage.group)).wait()
    stage.close()
    with pytest.raises(RuntimeError, match="closed; make another one"):
        stage.submit(total.device, lambda: None)
    assert len(alone) == (3 if rank == 0 else 0)
    return int(total)


def test_ranks_of_different_groups_make_a_stage_together():
    assert run_ranks(after_other_groups, 2) == [2, 2]


def closed_while_waiting(rank: int) -> tuple[float, str]:
    """Rank 0 closes a stage that waits for rank 1, which comes late."""
    stage = Stage(dist.group.WORLD)
    total = torch.ones(1)
    if rank == 1:
        time.sleep(8)
    waited = stage.submit(total.device, lambda: dist.all_reduce(total, group=stage.group))
    started = time.monotonic()
    stage.close()
    took = time.monotonic() - started
    waited.wait()
    return took, f"{int(total)}"


def test_closing_does_not_wait_for_a_rank_that_is_late_and_completes_what_was_submitted():
    (took, total), (_, other) = run_ranks(closed_while_waiting, 2)
    assert took < 7.5
    assert total == other == "2"


class Unusual(BaseException):
    """An error that is no Exception."""


def test_whatever_error_completes_the_future():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        stage = Stage(dist.group.WORLD)

        def fail() -> None:
            raise Unusual("seen")

        waited = stage.submit(torch.device("cpu"), fail)
        with pytest.raises(BaseException, match="seen"):
            waited.wait()
        stage.close()
    finally:
        dist.destroy_process_group()
