"""One worker's training run, to be read from top to bottom. Knows nothing of Ray and MLflow: metrics leave through the
`report` callable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import Baseline, GradientExchange, check_replicas, full_precision_volume, is_baseline
from lqray.experiment.options import BucketOptions, OptimizerOptions, SgdOptions
from lqray.experiment.schema import Trial
from lqray.quantization import Quantizer
from lqray.training.data import Batches, ImageClassification, load_dataset
from lqray.training.evaluation import evaluate
from lqray.training.extra_gradients import extra_gradient
from lqray.training.models import build_model
from lqray.training.schedule import learning_rate
from lqray.training.seeding import derive_seed
from lqray.training.telemetry import RunningMean, quantizer_metrics, wire_metrics


class DivergedError(RuntimeError):
    """The training loss is NaN or infinite."""


@dataclass(frozen=True)
class Report:
    """Metrics of a trial after `iteration` optimizer steps.

    evaluated: they include an evaluation; every rank makes it, and sends the report, at the same iterations. final: the
    last report of the run, with its summary.
    """

    iteration: int
    metrics: dict[str, float]
    evaluated: bool = False
    final: bool = False


def train(
    trial: Trial, group: dist.ProcessGroup, device: torch.device, report: Callable[[Report], None]
) -> dict[str, float]:
    """Train one trial on this rank of `group`, which has one rank for each worker. Returns the final metrics.

    Raises DivergedError for a loss that is not finite, ReplicasDivergedError when ranks no longer hold equal weights.
    """
    torch.manual_seed(derive_seed(trial.seed, "model"))
    dataset = load_dataset(trial.data).to(device)
    network = build_model(trial.model, dataset.shape, dataset.classes).to(device)
    optimizer = build_optimizer(trial.optimizer, network)
    model, exchange, baseline = connect(trial, network, group)
    batches = Batches(len(dataset.train), trial.schedule.batch_size, group.size(), trial.seed)
    volume = full_precision_volume(network, group.size() if isinstance(model, DistributedDataParallel) else 0)
    seconds, nmse = RunningMean(), RunningMean()
    metrics: dict[str, float] = {}

    for iteration in range(trial.schedule.iterations):
        measured = iteration % trial.telemetry.every == 0
        started = time.perf_counter()

        lr = learning_rate(trial.optimizer.lr, trial.schedule, iteration)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        chosen = batches.indices(iteration, group.rank()).to(device)
        images, labels = dataset.normalized(dataset.train.pixels[chosen]), dataset.train.labels[chosen]
        if exchange:
            exchange.begin_step(iteration, measure=measured)
        if baseline:
            baseline.begin_step()
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if exchange:
            for sample in range(exchange.fresh_samples(iteration)):
                chosen = batches.extra_indices(iteration, sample, group.rank()).to(device)
                exchange.observe(extra_gradient(network, dataset, chosen))
            exchange.update_levels()
            volume = exchange.volume
        if baseline:
            volume = baseline.volume
        optimizer.step()

        done = iteration + 1
        if iteration and (not measured or trial.telemetry.every == 1):
            seconds.add(time.perf_counter() - started)
        if measured:
            metrics = {"train/loss": mean_loss(loss, group), "train/lr": lr, **wire_metrics(volume)}
            if exchange:
                metrics |= quantizer_metrics(exchange, group, device)
                nmse.add(metrics["quantizer/nmse"])
            report(Report(done, metrics))
            if not math.isfinite(metrics["train/loss"]):
                raise DivergedError(f"the loss is {metrics['train/loss']} at iteration {iteration}; try a smaller lr")
        if done % trial.schedule.evaluate_every == 0 and done < trial.schedule.iterations:
            report(Report(done, evaluation(network, dataset, group), evaluated=True))

    check_replicas(network, group, device)
    final = evaluation(network, dataset, group) | wire_metrics(volume)
    final["time/seconds_per_step"] = seconds.value
    if not baseline:  # what torch's hooks lose is not measured
        final["quantizer/mean_nmse"] = nmse.value if exchange else 0.0
    report(Report(trial.schedule.iterations, final, evaluated=True, final=True))
    return final


def connect(
    trial: Trial, network: nn.Module, group: dist.ProcessGroup
) -> tuple[nn.Module, GradientExchange | None, Baseline | None]:
    """The network as this rank trains it, with its quantized exchange or torch's own hook: neither for `sgd` (no DDP
    either) and for `full_precision` (plain DDP)."""
    if trial.quantizer.method == "sgd":
        return network, None, None
    model = DistributedDataParallel(network, process_group=group, bucket_cap_mb=trial.exchange.bucket_cap_mb)
    if is_baseline(trial.quantizer):
        baseline = Baseline(trial.quantizer, group)
        baseline.attach(model)
        return model, None, baseline
    if not isinstance(trial.quantizer, BucketOptions):
        return model, None, None
    quantizer = Quantizer.create(**trial.quantizer.model_dump())
    seed = derive_seed(trial.seed, "rounding", group.rank())
    exchange = GradientExchange(quantizer, trial.exchange, group, seed)
    exchange.attach(model)
    return model, exchange, None


def build_optimizer(options: OptimizerOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trial names."""
    assert isinstance(options, SgdOptions)
    return torch.optim.SGD(
        network.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )


def evaluation(network: nn.Module, dataset: ImageClassification, group: dist.ProcessGroup) -> dict[str, float]:
    """Metrics of the test set. Collective."""
    loss, accuracy = evaluate(network, dataset, dataset.test, group)
    return {"test/loss": loss, "test/accuracy": accuracy}


def mean_loss(loss: torch.Tensor, group: dist.ProcessGroup) -> float:
    """Mean of the ranks' losses. Collective."""
    total = loss.detach().to(torch.float64).clone()
    dist.all_reduce(total, group=group)
    return float(total) / group.size()
