"""A worker that trains alone, and is gone, or late, when the others want to hear how far it came."""

import contextlib
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lqray.experiment.schema import Trial
from lqray.training.loop import train
from tests.testing.ranks import run_ranks


def without_rank_1(rank: int, config: dict, late: float, patience: float, file: str) -> None:
    """Writes what rank 0 of two raises when rank 1 ends after step 5, `late` seconds after it: nobody waits as long."""
    group = dist.new_group(timeout=timedelta(seconds=patience))
    done: list[int] = []

    def after_step(stepped) -> None:
        done.append(stepped.done)
        if rank == 1 and stepped.done == 5:
            time.sleep(late)
            os._exit(0)

    try:
        train(Trial.model_validate(config), group, torch.device("cpu"), lambda report: None, after_step=after_step)
    except RuntimeError as error:
        Path(file).write_text(f"after {done[-1]} steps: {type(error).__name__}: {error}")
    os._exit(0)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("method", "late", "patience", "said"),
    [
        ("full_precision", 0.0, 60.0, "RankLostError: rank 1 of 2 ended or cannot be reached, and this rank, 0 of 2,"),
        ("eden", 0.0, 60.0, "RankLostError: rank 1 of 2 ended or cannot be reached, and this rank, 0 of 2,"),
        ("eden", 10.0, 4.0, "RankStalledError: rank 1 of 2 did not come to a collective within resources.timeout"),
    ],
)
def test_it_is_named_by_the_exchange_that_waits_for_it(method, late, patience, said, tmp_path):
    """Rank 0 takes steps 6 and 7 alone, and waits in step 8, after which differences are exchanged."""
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [16]},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 14, "batch_size": 8, "evaluate_every": 100},
        "quantizer": {"method": method},
        "exchange": {"every": 4},
        "telemetry": {"every": 0},
        "workers": 2,
    }
    file = tmp_path / "said"
    with contextlib.suppress(KeyError):  # neither rank returns
        run_ranks(without_rank_1, 2, config, late, patience, str(file))
    assert file.read_text().startswith(f"after 7 steps: {said}")
