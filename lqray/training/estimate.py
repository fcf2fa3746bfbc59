"""What a trial will do, from its configuration alone: no data is read and nothing is computed but shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lqray.experiment.options import BucketOptions
from lqray.experiment.schema import Trial
from lqray.training.models import build_model

_FLOPS_PER_SECOND = 2e10
_STEP_SECONDS = 3e-3
# (channels, height, width), classes, training examples
_DATASETS = {
    "digits": ((1, 8, 8), 10, 1437),
    "mnist": ((1, 28, 28), 10, 60_000),
    "fashion_mnist": ((1, 28, 28), 10, 60_000),
    "cifar10": ((3, 32, 32), 10, 50_000),
    "cifar100": ((3, 32, 32), 100, 50_000),
    "svhn": ((3, 32, 32), 10, 73_257),
    "imagenet": ((3, 224, 224), 1000, 1_281_167),
}
_FLOAT_BYTES = {"full_precision": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Estimate:
    """iterations: optimizer steps. parameters: trained coordinates. bytes_per_step: that a process sends, about; None
    for methods whose bytes depend on more than a count (PowerSGD). flops_per_step: of all workers, both passes."""

    iterations: int
    parameters: int
    bytes_per_step: float | None
    flops_per_step: float

    def seconds(self, processes: int) -> float:
        """A rough guess for CPUs of which nothing is known: 20 GFLOP/s for each process, 3 ms for each step."""
        return self.iterations * (self.flops_per_step / processes / _FLOPS_PER_SECOND + _STEP_SECONDS)


def estimate(trial: Trial, processes: int) -> Estimate | None:
    """For a trial on so many processes; None for a dataset of which too little is known without its files."""
    if trial.data.name == "gaussian_mixture":
        options = trial.data.model_dump()
        shape, classes, examples = (1, 1, options["dimension"]), options["classes"], options["train_size"]
    elif trial.data.name in _DATASETS:
        shape, classes, examples = _DATASETS[trial.data.name]
    else:
        return None
    if trial.data.name == "imagenet":
        side = trial.data.model_dump()["size"]
        shape = (3, side, side)
    parameters, flops = _model(trial.model.model_dump_json(), shape, classes)
    schedule, batch = trial.schedule, trial.schedule.batch_size * trial.workers
    iterations = schedule.iterations or (schedule.epochs or 1) * max(1, examples // batch)
    sent = _bytes(trial, parameters, processes)
    return Estimate(iterations, parameters, sent, 3 * flops * batch)


@lru_cache(maxsize=256)
def _model(config: str, shape: tuple[int, int, int], classes: int) -> tuple[int, float]:
    """Trained coordinates, and operations of a forward pass of one example."""
    from pydantic import TypeAdapter

    annotation: Any = Trial.model_fields["model"].annotation
    options = TypeAdapter(annotation).validate_json(config)
    with torch.device("meta"):
        model = build_model(options, shape, classes)
        counter = FlopCounterMode(display=False)
        with counter:
            model.eval()(torch.empty(1, *shape))
    return sum(p.numel() for p in model.parameters() if p.requires_grad), counter.get_total_flops()


def _bytes(trial: Trial, n: int, processes: int) -> float | None:
    quantizer, exchange = trial.quantizer, trial.exchange
    if processes == 1 or quantizer.method == "sgd":
        return 0.0
    others = processes - 1
    if quantizer.method in _FLOAT_BYTES:
        return 2 * others / processes * _FLOAT_BYTES[quantizer.method] * n
    if not isinstance(quantizer, BucketOptions):
        return None
    norms = 4 * math.ceil(n / quantizer.bucket_size)
    bits: int = quantizer.bits  # type: ignore[attr-defined]
    own = trial.workers // processes * (norms + bits * n / 8)
    if exchange.reduction == "all_gather":
        return others * own
    return others / processes * (own + norms + exchange.gather_bits * n / 8)
