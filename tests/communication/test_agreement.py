"""Ranks that would misread each other, and replicas that are no longer equal."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import (
    GradientExchange,
    RanksDisagreeError,
    ReplicasDivergedError,
    check_replicas,
)
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Quantizer
from tests.testing.exchanges import network
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes


def disagree(rank: int, what: str) -> str:
    options = {"method": "alq", "bits": 3, "bucket_size": 64}
    exchange = {}
    if rank == 2:
        options |= {"bits": {"bits": 2}, "bucket size": {"bucket_size": 128}, "method": {"method": "amq"}}.get(what, {})
        exchange |= {"reduction": "scatter_reduce"} if what == "reduction" else {}
    quantizer = Quantizer.create(**options)
    if what == "levels" and rank == 2:
        quantizer.set_levels(np.linspace(-1, 1, 8))
    seed = 7 if what == "seed" else derive_seed(1, "rounding", rank)
    made = GradientExchange(quantizer, ExchangeOptions(**exchange), dist.group.WORLD, [seed])
    try:
        made.attach(DistributedDataParallel(network()))
    except RanksDisagreeError as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize("what", ["bits", "bucket size", "method", "levels", "reduction", "seed", "nothing"])
def test_ranks_that_would_misread_each_other_never_start(what):
    for message in run_ranks(disagree, 3, what):
        if what == "nothing":
            assert message == "agreed"
        elif what == "seed":
            assert "ranks 0, 1, 2" in message
        else:
            assert "rank 2" in message


def diverge(rank: int) -> str:
    model = network()
    if rank == 1:
        with torch.no_grad():
            model[0].weight[0, 0] += 1e-7
    try:
        check_replicas(model, dist.group.WORLD, torch.device("cpu"))
    except ReplicasDivergedError as error:
        return str(error)
    return "not noticed"


def test_replicas_that_differ_in_a_bit_are_an_error():
    for message in run_ranks(diverge, 2):
        assert "rank 0:" in message
        assert "rank 1:" in message
