"""One worker's training run, to be read from top to bottom. Knows nothing of Ray and MLflow: metrics leave through the
`report` callable."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lqray.communication import check_replicas, naming_lost_ranks, naming_stalled_ranks
from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.headline import headline_of
from lqray.experiment.part_options import load_metric
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.training import masters
from lqray.training.batches import Batches
from lqray.training.checkpoint import Checkpoints
from lqray.training.clipping import clip, clipping_metrics
from lqray.training.dataset import Batch, Dataset, Split, load_dataset
from lqray.training.evaluation import evaluate
from lqray.training.extra_gradients import extra_gradient, kept_buffers
from lqray.training.forward import Objective, prepared, seed_pass
from lqray.training.models import build_model
from lqray.training.nonfinite import DivergedError, all_finite, diverged
from lqray.training.optimizers import lr_ratios, moment_decay
from lqray.training.reports import Report, StoppedError
from lqray.training.schedule import in_iterations, learning_rate
from lqray.training.tasks import build_task
from lqray.training.telemetry import PhaseTimer, RunningMean, Spent, density_snapshot, quantizer_metrics, wire_metrics
from lqray.training.variance import variance_metrics
from lqray.training.wires import Wires, connect

__all__ = ["DivergedError", "Report", "Stepped", "StoppedError", "train"]

_MOST_SKIPPED = 100
_STOP_EVERY = 10


@dataclass(frozen=True)
class Stepped:
    """What may be looked at after `done` of a run's `iterations` steps, and must be left as it is. batches: which
    examples its workers see at which iteration."""

    done: int
    iterations: int
    network: nn.Module
    objective: Objective
    dataset: Dataset
    batches: Batches


@dataclass
class Progress:
    """What a run knows of itself beside its tensors; saved with them. best: largest score of its headline metric so
    far. skipped: steps left out, `in_row` of them just now. lost: metrics whose latest value is NaN."""

    best: float = -math.inf
    skipped: int = 0
    in_row: int = 0
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Progress:
        """What a checkpoint has, also one of before there were other tasks than classification."""
        return cls(**{"best" if key == "best_accuracy" else key: value for key, value in saved.items()})


def train(
    trial: Trial,
    group: dist.ProcessGroup,
    device: torch.device,
    report: Callable[[Report], None],
    checkpoints: Checkpoints | None = None,
    after_step: Callable[[Stepped], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Train one trial on this rank of `group`, whose ranks share its workers evenly. Returns the final metrics.

    checkpoints: where to write them, and to continue from the newest if there is one; then everything that follows is
    the same bits as without the interruption. after_step: called after every step; what it raises ends the run. stop:
    given to all ranks or to none, and asked on rank 0 now and then; once it says True, all ranks stop after the same
    step.

    Raises DivergedError for a gradient or loss that is not finite, ReplicasDivergedError when ranks no longer hold
    equal weights, RankLostError when another rank ends, RankStalledError when one does not come to a collective,
    CheckpointError for checkpoints of another trial, ValueError for workers that do not divide evenly, StoppedError
    when asked to stop.
    """
    torch.manual_seed(derive_seed(trial.seed, "model"))
    dataset = load_dataset(trial.data).to(device)
    network = prepared(build_model(trial.model, dataset.shape, dataset.classes).to(device), trial.model)
    with naming_lost_ranks(group), naming_stalled_ranks(group), connect(trial, network, group) as wires:
        run = _Run(trial, wires, device, dataset, _with_remarks(report, checkpoints) if checkpoints else report)
        first = run.resume(checkpoints) if checkpoints else 0
        return run.steps(first, checkpoints, after_step, stop)


def _with_remarks(report: Callable[[Report], None], checkpoints: Checkpoints) -> Callable[[Report], None]:
    return lambda update: report(replace(update, remarks=checkpoints.take_remarks()))


class _Run:
    def __init__(
        self, trial: Trial, wires: Wires, device: torch.device, dataset: Dataset, report: Callable[[Report], None]
    ) -> None:
        self.trial, self.wires, self.device, self.dataset = trial, wires, device, dataset
        self.network, self.group = wires.network, wires.group
        self.batches = Batches(dataset.train_examples, trial.schedule.batch_size, trial.workers, trial.seed)
        self.schedule = in_iterations(trial.schedule, self.batches.steps_per_epoch)
        assert self.schedule.iterations is not None
        self.iterations = self.schedule.iterations
        self.optimizer = masters.build(trial, self.network)
        self.lr_ratios = lr_ratios(self.optimizer, trial.optimizer.lr)
        self.objective = Objective(build_task(trial.task, dataset), trial.model, trial.schedule.accumulate)
        self.headline = headline_of(trial.flat())
        self.metrics = {reference: load_metric(reference) for reference in trial.metrics}
        self.timer, self.progress = PhaseTimer(device), Progress()
        self.seconds, self.spent = RunningMean(), Spent(device)
        self.nmse, self.moment_nmse = RunningMean(), RunningMean()
        self.wire: dict[str, float] = {}
        self.norm: Tensor | None = None
        self.snapshot: dict[str, Any] | None = None
        self._report = report
        if wires.exchange:
            wires.exchange.follow(self.optimizer)
            if trial.telemetry.every and trial.telemetry.moments:
                wires.exchange.keep_moments(moment_decay(trial.optimizer))

    def steps(
        self,
        first: int,
        checkpoints: Checkpoints | None,
        after_step: Callable[[Stepped], None] | None,
        stop: Callable[[], bool] | None,
    ) -> dict[str, float]:
        feed = self.dataset.feed(self.batches.draws(first, self.iterations, self.wires.workers))
        for iteration in range(first, self.iterations):
            self.step(iteration, feed)
            done = iteration + 1
            evaluated = done % self.schedule.evaluate_every == 0 and done < self.iterations
            if evaluated:
                metrics = self.spent.metrics() | self.evaluation()
                self.report(done, metrics, evaluated=True)
                self.keep_best(done, metrics, checkpoints)
            if checkpoints and done % checkpoints.every == 0 and done < self.iterations:
                self.save(done, checkpoints)
            if after_step:
                after_step(Stepped(done, self.iterations, self.network, self.objective, self.dataset, self.batches))
            if stop and done < self.iterations and (evaluated or done % _STOP_EVERY == 0) and self.agreed(stop):
                if checkpoints:
                    self.save(done, checkpoints)
                raise StoppedError(done)

        self.wires.finish()
        self.wires.share_buffers()
        check_replicas(self.network, self.group, self.device)
        if first < self.iterations:
            self.wire = wire_metrics(self.wires.volume())
            if self.wires.exchange and self.group.rank() == 0:
                self.snapshot = density_snapshot(self.wires.exchange, self.iterations)
        final = self.spent.metrics() | self.evaluation() | self.wire
        if not math.isnan(self.seconds.value):
            final["time/seconds_per_step"] = self.seconds.value
        if not self.wires.baseline:  # what torch's hooks lose is not measured
            final["quantizer/mean_nmse"] = self.nmse.value if self.wires.exchange else 0.0
            if self.trial.telemetry.moments:
                final["quantizer/mean_moment_nmse"] = self.moment_nmse.value if self.wires.exchange else 0.0
            if self.nmse.left_out:
                final["quantizer/mean_nmse_left_out"] = self.nmse.left_out
        if self.schedule.on_nonfinite == "skip":
            final["train/skipped_steps"] = self.progress.skipped
        self.keep_best(self.iterations, final, checkpoints)
        if checkpoints and first < self.iterations:
            self.save(self.iterations, checkpoints)
        self.report(self.iterations, final, evaluated=True, snapshot=self.snapshot, final=True)
        return final

    def agreed(self, stop: Callable[[], bool]) -> bool:
        """Rank 0's answer, on every rank. Collective."""
        if self.group.size() == 1:
            return stop()
        answer = torch.tensor([self.group.rank() == 0 and stop()], dtype=torch.uint8, device=self.device)
        dist.broadcast(answer, group=self.group, group_src=0)
        return bool(answer)

    def step(self, iteration: int, feed: Iterator[Batch]) -> None:
        """One optimizer step, and what is measured of it."""
        trial, wires = self.trial, self.wires
        every = trial.telemetry.every
        measured = every > 0 and iteration % every == 0
        started = time.perf_counter()
        variances = {}
        if measured and trial.telemetry.samples:
            variances = variance_metrics(trial, wires, self.objective, self.dataset, self.batches, iteration)
        self.timer.begin_step(measured)
        self.spent.begin_step()

        lr = learning_rate(trial.optimizer.lr, self.schedule, iteration)
        for parameters, ratio in zip(self.optimizer.param_groups, self.lr_ratios, strict=True):
            parameters["lr"] = ratio * lr
        wires.begin_step(iteration, measured, keep=iteration + 1 == self.iterations and self.group.rank() == 0)
        with ExitStack() as stack:
            if self.schedule.on_nonfinite == "skip":
                before = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
            loss = self.backward(iteration, feed)
            self.update_levels(iteration)
            stack.enter_context(self.timer.timed("optimizer"))
            self.norm = None
            if all_finite(self.network):
                if trial.optimizer.clip_norm is not None:
                    self.norm = clip(self.network, trial.optimizer.clip_norm)
                self.optimizer.step()
                self.progress.in_row = 0
            elif self.schedule.on_nonfinite == "stop":
                raise diverged(self.network, iteration, loss)
            else:
                self.skip(iteration, loss, before)

        self.spent.end_step(wires.volume())
        if iteration and (not measured or every == 1):
            self.seconds.add(time.perf_counter() - started)
        if measured:
            self.measure(iteration, loss, lr, variances)

    def backward(self, iteration: int, feed: Iterator[Batch]) -> Tensor:
        """The workers' forward and backward passes; their losses (workers,)."""
        self.optimizer.zero_grad()
        losses = []
        for worker in self.wires.workers:
            with self.timer.timed("data"):
                batch = next(feed)
            losses.append(self.backward_of(worker, batch, iteration))
        return torch.stack(losses)

    def backward_of(self, worker: int, batch: Batch, iteration: int) -> Tensor:
        """One worker's forward and backward pass; its loss. The last worker of a process starts the exchange.

        Randomness of the forward pass is a function of (seed, iteration, worker). Of the workers of a process only the
        first leaves its mark on BatchNorm's statistics, which DDP takes from rank 0: it does not matter how many share
        it.
        """
        wires = self.wires
        first, last = worker == wires.workers[0], worker == wires.workers[-1]
        seed_pass(derive_seed(self.trial.seed, "forward", iteration, worker), self.device)
        with ExitStack() as stack:
            if not first:
                stack.enter_context(kept_buffers(wires.model))
            losses = self.objective.losses(wires.model, batch)
            total = torch.zeros((), device=self.device)
            for piece in range(1, self.objective.pieces + 1):
                with wires.pass_of(last and piece == self.objective.pieces):
                    with self.timer.timed("forward"):
                        loss = next(losses)
                    with self.timer.timed("backward"):
                        # A quantized exchange takes the workers' gradients one by one; any other takes their mean.
                        (loss if wires.exchange else loss / len(wires.workers)).backward()
                total += loss.detach()
        if wires.exchange and not last:
            wires.exchange.set_aside()
        return total

    def update_levels(self, iteration: int) -> None:
        exchange, workers = self.wires.exchange, self.wires.workers
        if not exchange:
            return
        for worker, sample in itertools.product(workers, range(exchange.fresh_samples(iteration))):
            chosen = self.batches.extra_indices(iteration, sample, worker)
            seed = derive_seed(self.trial.seed, "extra forward", iteration, sample, worker)
            batch = self.dataset.train_batch(chosen, seed)
            exchange.observe(extra_gradient(self.network, self.objective, batch, seed), workers.index(worker))
        exchange.update_levels()

    def skip(self, iteration: int, loss: Tensor, buffers: dict[str, Tensor]) -> None:
        """Leave a step out: parameters, optimizer and BatchNorm's statistics stay as they were."""
        self.progress.skipped += 1
        self.progress.in_row += 1
        if self.progress.in_row >= _MOST_SKIPPED:
            last = diverged(self.network, iteration, loss)
            raise DivergedError(f"{_MOST_SKIPPED} steps in a row were skipped; of the last: {last}")
        with torch.no_grad():
            for name, buffer in self.network.named_buffers():
                buffer.copy_(buffers[name])

    def measure(self, iteration: int, loss: Tensor, lr: float, variances: dict[str, float]) -> None:
        """Report a measured step. Collective."""
        volume = self.wires.volume()
        metrics = {"train/loss": mean_loss(loss, self.group), "train/lr": lr, **wire_metrics(volume), **variances}
        metrics |= self.timer.metrics()
        if self.norm is not None and self.trial.optimizer.clip_norm is not None:
            metrics |= clipping_metrics(self.norm, self.trial.optimizer.clip_norm)
        if self.wires.exchange:
            metrics |= quantizer_metrics(self.wires.exchange, self.group, self.device)
            self.nmse.add(metrics["quantizer/nmse"])
            if "quantizer/moment_nmse" in metrics:
                self.moment_nmse.add(metrics["quantizer/moment_nmse"])
        if self.wires.decision and not iteration:
            metrics |= self.wires.decision.metrics()
        if self.schedule.on_nonfinite == "skip":
            metrics["train/skipped_steps"] = self.progress.skipped
        self.report(iteration + 1, metrics)
        if not math.isfinite(metrics["train/loss"]) and self.schedule.on_nonfinite == "stop":
            raise DivergedError(f"the loss is {metrics['train/loss']} at iteration {iteration}; try a smaller lr")

    def evaluation(self) -> dict[str, float]:
        """Metrics of the test set, and of the training set if wanted. Collective."""
        self.wires.share_buffers()
        splits: tuple[Split, ...] = ("test", "train") if self.schedule.evaluate_train else ("test",)
        metrics: dict[str, float] = {}
        for split in splits:
            own = self.metrics if split == "test" else {}
            found = evaluate(self.network, self.objective, self.dataset, split, self.group, self.device, own)
            # train/loss is the loss of a step's own minibatch.
            names = {"loss": "train/full_loss"} if split == "train" else {}
            metrics |= {names.get(name, f"{split}/{name}"): value for name, value in found.items()}
        return metrics

    def report(self, iteration: int, metrics: dict[str, float], evaluated: bool = False, **more: Any) -> None:
        examples = self.dataset.train_examples, self.dataset.test_examples
        lost = {key for key in self.progress.lost if key not in metrics}
        lost |= {key for key, value in metrics.items() if math.isnan(value)}
        self.progress.lost = more["lost"] = tuple(sorted(lost))
        self._report(Report(iteration, self.iterations, metrics, evaluated, examples=examples, **more))

    def keep_best(self, done: int, metrics: dict[str, float], checkpoints: Checkpoints | None) -> None:
        if self.headline.metric not in metrics:
            measured = ", ".join(key for key in metrics if key.startswith("test/"))
            found = f"found {self.headline.metric}, which is not measured of these data"
            raise UnfitTrialError(f"task.headline: {found}; allowed: {measured}")
        score = self.headline.score(metrics)
        if score > self.progress.best:
            self.progress.best = score
            if checkpoints:
                self.save(done, checkpoints, best=True)

    def save(self, done: int, checkpoints: Checkpoints, best: bool = False) -> None:
        """Write a checkpoint after `done` steps. Collective.

        There is no random state in it: every random number of a run is a function of the trial's seed and of where it
        is used, and so is the order of the examples.
        """
        self.wires.share_buffers()
        check_replicas(self.network, self.group, self.device)
        shared = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "nmse": self.nmse.state_dict(),
            "moment_nmse": self.moment_nmse.state_dict(),
            "seconds": self.seconds.state_dict() | {"spent": self.spent.seconds},
            "wire": wire_metrics(self.wires.volume()),
            "snapshot": self.snapshot,
            "inputs": {"shape": list(self.dataset.shape), "classes": self.dataset.classes},
        }
        own = {**self.wires.state_dict(), "bytes_sent": self.spent.bytes_sent}
        checkpoints.save(self.trial.id, done, shared, own, self.group, best)

    def resume(self, checkpoints: Checkpoints) -> int:
        """Continue from the newest checkpoint; returns how many steps are done. Collective."""
        found = checkpoints.load(self.trial.id, self.group, self.device)
        if found is None:
            return 0
        done, shared, own = found
        if done < self.iterations:
            # DDP lays its buckets out anew after the first backward pass, in the order in which gradients came. The
            # run that is continued did so at iteration 0; so does this one, before it takes that run's state.
            self.wires.begin_step(0, False)
            self.backward(0, self.dataset.feed(self.batches.draws(0, 1, self.wires.workers)))
            self.optimizer.zero_grad()
        self.network.load_state_dict(shared["network"])
        self.optimizer.load_state_dict(shared["optimizer"])
        self.progress = Progress.of(shared["progress"])
        self.nmse.load_state_dict(shared["nmse"])
        self.moment_nmse.load_state_dict(shared.get("moment_nmse", RunningMean().state_dict()))
        self.seconds.load_state_dict(shared["seconds"])
        self.wire = shared["wire"]
        self.snapshot = shared.get("snapshot")  # of a run that is over: it has no gradient any more
        self.wires.load_state_dict(own)
        self.spent.resume(shared["seconds"].get("spent"), own.get("bytes_sent"))
        return int(done)


def mean_loss(losses: Tensor, group: dist.ProcessGroup) -> float:
    """Mean of all workers' losses, of this rank's (workers,). Collective."""
    total = losses.to(torch.float64).sum()
    dist.all_reduce(total, group=group)
    return float(total) / (group.size() * losses.numel())
