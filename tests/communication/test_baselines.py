"""Full precision, casts and PowerSGD beside PyTorch's own."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import (
    full_precision_volume,
)
from lqray.communication.checks.replicas import checksum
from lqray.experiment.schema import Trial
from lqray.training.loop import connect
from tests.testing.exchanges import batch, network
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes


def torchs_own(model: DistributedDataParallel, method: str) -> None:
    """What a PyTorch user would write."""
    if method == "fp16":
        model.register_comm_hook(dist.group.WORLD, default_hooks.fp16_compress_hook)
    elif method == "bf16":
        # By its own name DDP lets it run over NCCL only, though gloo can carry it.
        model.register_comm_hook(
            dist.group.WORLD, lambda group, bucket: default_hooks.bf16_compress_hook(group, bucket)
        )
    elif method == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            dist.group.WORLD, matrix_approximation_rank=2, start_powerSGD_iter=5, random_seed=0
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def two_ways(rank: int, method: str) -> tuple[list[int], list[int], list[float]]:
    """Checksums of a model trained by lqray's `method` and by torch over 20 steps; bits per coordinate of the steps."""
    options = {"rank": 2, "start_iteration": 5} if method == "powersgd" else {}
    trial = Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "cnn"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"iterations": 1, "batch_size": 1},
            "workers": 3,
            "quantizer": {"method": method, **options},
        }
    )
    with connect(trial, network(), dist.group.WORLD) as wires:
        ours, baseline = wires.model, wires.baseline
        assert wires.exchange is None
    assert (baseline is None) == (method == "full_precision")
    theirs = DistributedDataParallel(network())
    torchs_own(theirs, method)
    sums, bits = [], []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sums.append([])
        for step in range(20):
            images, labels = batch(rank, step)
            optimizer.zero_grad()
            if baseline:
                baseline.begin_step()
            nn.functional.cross_entropy(model(images), labels).backward()
            if baseline and model is ours:
                bits.append(baseline.volume.bits_per_coordinate)
            optimizer.step()
            sums[-1].append(checksum(model.module))
    return sums[0], sums[1], bits


@pytest.mark.parametrize("method", ["full_precision", "fp16", "bf16", "powersgd"])
def test_full_precision_and_baselines_are_torchs_bit_for_bit(method):
    ranks = run_ranks(two_ways, 3, method)
    for ours, theirs, bits in ranks:
        assert ours == theirs
        assert ours == ranks[0][0]
        if method in ("fp16", "bf16"):
            assert bits == [16.0] * 20
        if method == "powersgd":
            # Rank 2 of 50 x 20; 3 x 50, which would not shrink by half, and two biases as they are: 1,203 coordinates.
            assert bits[:5] == [32.0] * 5
            assert bits[-1] == pytest.approx(32 * (2 * (50 + 20) + 3 * 50 + 50 + 3) / 1203)


def test_full_precision_volume():
    model = network()
    n = sum(parameter.numel() for parameter in model.parameters())
    volume = full_precision_volume(model, 4)
    assert (volume.coordinates, volume.payload_bytes, volume.bytes_sent) == (n, 4 * n, 6 * n)
    assert volume.bits_per_coordinate == 32
    assert full_precision_volume(model, 0).bits_per_coordinate == 0
    half = copy.deepcopy(model).half()
    assert full_precision_volume(half, 2).payload_bytes == 2 * n
