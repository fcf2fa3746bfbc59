"""Steps of a small GPT of 3.3 million parameters: with few-bit gradients against full precision, and lqray's loop
against one that a user would write by hand. For benchmarks/training.py."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lqray.experiment.schema import Trial
from lqray.training.batches import Batches
from lqray.training.dataset import load_dataset
from lqray.training.models import build_model
from lqray.training.worker import run_worker

ROUNDS, STEPS, FIRST = 5, 14, 3
METHODS = {
    "full_precision": {"method": "full_precision"},
    "alq_3_bits": {"method": "alq", "bits": 3, "bucket_size": 8192, "update_at": [0]},
    "eden_3_bits": {"method": "eden", "bits": 3, "bucket_size": 512},
    "allocated_3_bits": {"method": "allocated", "bits": 3},
}


def trial(quantizer: dict[str, Any]) -> Trial:
    """As experiments/gpt_small.yaml, a little wider."""
    return Trial.model_validate(
        {
            "data": {"name": "text", "context": 128, "evaluation_examples": 16},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 256},
            "optimizer": {
                "name": "adamw",
                "lr": 1e-3,
                "beta2": 0.99,
                "weight_decay": 0.1,
                "decayed": "matrices",
                "clip_norm": 1.0,
            },
            "schedule": {"iterations": STEPS, "batch_size": 8, "decay": "cosine", "warm_up": 5, "evaluate_every": 1000},
            "quantizer": quantizer,
            "telemetry": {"every": 0},
            "workers": 2,
        }
    )


def seconds_of_a_step(stamps: list[float]) -> float:
    """Median, after the first few."""
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[FIRST:]))


def by_lqray(quantizer: dict[str, Any]) -> float:
    """Seconds of a step of lqray's loop, in this rank's group."""
    stamps: list[float] = []
    run_worker(
        trial(quantizer),
        lambda report: None,
        torch.device("cpu"),
        1,
        after_step=lambda _: stamps.append(time.perf_counter()),
    )
    return seconds_of_a_step(stamps)


def by_hand() -> float:
    """The same training, written out: the loop that a user of DistributedDataParallel has."""
    chosen = trial(METHODS["full_precision"])
    dataset = load_dataset(chosen.data)
    torch.manual_seed(0)
    network = build_model(chosen.model, dataset.shape, dataset.classes)
    model = DistributedDataParallel(network)
    matrices = [one for one in network.parameters() if one.ndim > 1]
    others = [one for one in network.parameters() if one.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    order = torch.randperm(dataset.train_examples, generator=torch.Generator().manual_seed(1))
    own, batch = order[dist.get_rank() :: dist.get_world_size()], 8
    stamps = []
    for step in range(STEPS):
        inputs, targets = dataset.train_batch(own[step * batch : (step + 1) * batch], 0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        stamps.append(time.perf_counter())
    return seconds_of_a_step(stamps)


def steps(rank: int) -> dict[str, Any]:
    """All in turn, in rounds; ratios are medians over rounds."""
    rounds = []
    for _ in range(ROUNDS):
        found = {name: by_lqray(quantizer) for name, quantizer in METHODS.items()}
        rounds.append(found | {"by_hand": by_hand()})
    plain = "full_precision"
    figures: dict[str, Any] = {f"{name}_seconds": statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name in METHODS:
        if name != plain:
            figures[f"{name}_by_full_precision"] = statistics.median(r[name] / r[plain] for r in rounds)
    figures["loop_by_hand_written"] = statistics.median(r[plain] / r["by_hand"] for r in rounds)
    return figures


def reading(rank: int) -> dict[str, Any]:
    """Tokens that a process reads in a second, over those that it trains on."""
    chosen = trial(METHODS["full_precision"])
    dataset = load_dataset(chosen.data)
    batches = Batches(dataset.train_examples, 8, 2, 1)
    rates = []
    for _ in range(ROUNDS):
        step = by_lqray(METHODS["full_precision"])
        read: list[Tensor] = []
        started = time.perf_counter()
        for inputs, _ in dataset.feed(batches.draws(0, 200, range(rank, rank + 1))):
            read.append(inputs[0, 0])
        rates.append((time.perf_counter() - started) / 200 / step)
    tokens = 8 * dataset.shape[0]
    return {"tokens_per_batch": tokens, "read_by_trained": 1 / statistics.median(rates)}
