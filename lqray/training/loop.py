"""One worker's training run, to be read from top to bottom. Knows nothing of Ray and MLflow: metrics leave through the
`report` callable."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import (
    Baseline,
    Decision,
    GradientExchange,
    bucket_cap_mb,
    check_replicas,
    decide,
    full_precision_volume,
    is_baseline,
    naming_lost_ranks,
)
from lqray.experiment.options import BucketOptions
from lqray.experiment.schema import Trial
from lqray.quantization import Quantizer
from lqray.training.batches import Batches
from lqray.training.data import Batch, Dataset, load_dataset
from lqray.training.evaluation import evaluate
from lqray.training.extra_gradients import extra_gradient, kept_buffers
from lqray.training.models import build_model
from lqray.training.optimizers import build_optimizer
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
    """Train one trial on this rank of `group`, whose ranks share its workers evenly. Returns the final metrics.

    Raises DivergedError for a loss that is not finite, ReplicasDivergedError when ranks no longer hold equal weights,
    RankLostError when another rank ends, ValueError for workers that do not divide evenly.
    """
    torch.manual_seed(derive_seed(trial.seed, "model"))
    dataset = load_dataset(trial.data).to(device)
    network = build_model(trial.model, dataset.shape, dataset.classes).to(device)
    optimizer = build_optimizer(trial.optimizer, network)
    with naming_lost_ranks(group), connect(trial, network, group) as wires:
        return _steps(trial, group, device, report, dataset, network, optimizer, wires)


def _steps(
    trial: Trial,
    group: dist.ProcessGroup,
    device: torch.device,
    report: Callable[[Report], None],
    dataset: Dataset,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    wires: Wires,
) -> dict[str, float]:
    batches = Batches(dataset.train_examples, trial.schedule.batch_size, trial.workers, trial.seed)
    feed = dataset.feed(batches.draws(0, trial.schedule.iterations, wires.workers))
    exchange, baseline = wires.exchange, wires.baseline
    volume = full_precision_volume(network, group.size() if isinstance(wires.model, DistributedDataParallel) else 0)
    seconds, nmse = RunningMean(), RunningMean()
    metrics: dict[str, float] = {}

    for iteration in range(trial.schedule.iterations):
        measured = iteration % trial.telemetry.every == 0
        started = time.perf_counter()

        lr = learning_rate(trial.optimizer.lr, trial.schedule, iteration)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        if exchange:
            exchange.begin_step(iteration, measure=measured)
        if baseline:
            baseline.begin_step()
        optimizer.zero_grad()
        loss = torch.stack([_backward(trial, wires, next(feed), iteration, worker) for worker in wires.workers])
        if exchange:
            for worker, sample in itertools.product(wires.workers, range(exchange.fresh_samples(iteration))):
                chosen = batches.extra_indices(iteration, sample, worker)
                seed = derive_seed(trial.seed, "extra forward", iteration, sample, worker)
                gradient = extra_gradient(network, dataset.train_batch(chosen, seed), seed)
                exchange.observe(gradient, wires.workers.index(worker))
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
            if wires.decision and not iteration:
                metrics |= wires.decision.metrics()
            report(Report(done, metrics))
            if not math.isfinite(metrics["train/loss"]):
                raise DivergedError(f"the loss is {metrics['train/loss']} at iteration {iteration}; try a smaller lr")
        if done % trial.schedule.evaluate_every == 0 and done < trial.schedule.iterations:
            report(Report(done, evaluation(network, dataset, group, device), evaluated=True))

    check_replicas(network, group, device)
    final = evaluation(network, dataset, group, device) | wire_metrics(volume)
    final["time/seconds_per_step"] = seconds.value
    if not baseline:  # what torch's hooks lose is not measured
        final["quantizer/mean_nmse"] = nmse.value if exchange else 0.0
    report(Report(trial.schedule.iterations, final, evaluated=True, final=True))
    return final


def _backward(trial: Trial, wires: Wires, batch: Batch, iteration: int, worker: int) -> Tensor:
    """One worker's forward and backward pass; its loss. The last worker of a process starts the exchange.

    Randomness of the forward pass is a function of (seed, iteration, worker). Of the workers of a process only the
    first leaves its mark on BatchNorm's statistics, which DDP takes from rank 0: it does not matter how many share it.
    """
    first, last = worker == wires.workers[0], worker == wires.workers[-1]
    inputs, labels = batch
    torch.manual_seed(derive_seed(trial.seed, "forward", iteration, worker))
    with ExitStack() as stack:
        if not first:
            stack.enter_context(kept_buffers(wires.model))
        if not last and isinstance(wires.model, DistributedDataParallel):
            stack.enter_context(wires.model.no_sync())
        loss = cross_entropy(wires.model(inputs), labels)
        # A quantized exchange takes the workers' gradients one by one; any other takes their mean.
        (loss if wires.exchange else loss / len(wires.workers)).backward()
    if wires.exchange and not last:
        wires.exchange.set_aside()
    return loss.detach()


@dataclass(frozen=True)
class Wires:
    """How this process trains and exchanges. model: the network, or DDP around it. exchange, baseline: at most one.
    decision: of `exchange.bypass: auto`. workers: those of the trial's that this process runs."""

    model: nn.Module
    workers: range
    exchange: GradientExchange | None = None
    baseline: Baseline | None = None
    decision: Decision | None = None


@contextmanager
def connect(trial: Trial, network: nn.Module, group: dist.ProcessGroup) -> Iterator[Wires]:
    """The network as this rank trains it, with its quantized exchange or torch's own hook: neither for `sgd` (no DDP
    either) and for `full_precision` (plain DDP). Collective.

    Raises ValueError when the workers do not divide evenly among the processes.
    """
    if trial.workers % group.size():
        raise ValueError(
            f"the trial has {trial.workers} workers, the process group {group.size()} ranks; allowed: a divisor of the "
            "workers"
        )
    share = trial.workers // group.size()
    workers = range(group.rank() * share, (group.rank() + 1) * share)
    if trial.quantizer.method == "sgd":
        yield Wires(network, workers)
        return
    model = DistributedDataParallel(
        network,
        process_group=group,
        bucket_cap_mb=bucket_cap_mb(trial.quantizer, trial.exchange, network, group),
        find_unused_parameters=trial.exchange.find_unused_parameters,
    )
    if is_baseline(trial.quantizer):
        baseline = Baseline(trial.quantizer, group)
        baseline.attach(model)
        yield Wires(model, workers, baseline=baseline)
        return
    if not isinstance(trial.quantizer, BucketOptions):
        yield Wires(model, workers)
        return
    quantizer = Quantizer.create(**trial.quantizer.model_dump())
    decision = None
    if trial.exchange.bypass == "auto":
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        decision = decide(quantizer, sum(parameter.numel() for parameter in trained), group, trained[0].device)
        if decision.bypass:
            yield Wires(model, workers, decision=decision)
            return
    seeds = [derive_seed(trial.seed, "rounding", worker) for worker in workers]
    exchange = GradientExchange(quantizer, trial.exchange, group, seeds)
    try:
        exchange.attach(model)
        yield Wires(model, workers, exchange=exchange, decision=decision)
    finally:
        exchange.close()


def evaluation(
    network: nn.Module, dataset: Dataset, group: dist.ProcessGroup, device: torch.device
) -> dict[str, float]:
    """Metrics of the test set. Collective."""
    loss, accuracy = evaluate(network, dataset, "test", group, device)
    return {"test/loss": loss, "test/accuracy": accuracy}


def mean_loss(losses: Tensor, group: dist.ProcessGroup) -> float:
    """Mean of all workers' losses, of this rank's (workers,). Collective."""
    total = losses.to(torch.float64).sum()
    dist.all_reduce(total, group=group)
    return float(total) / (group.size() * losses.numel())
