"""One worker's training run, to be read from top to bottom. Knows nothing of Ray and MLflow: metrics leave through the
`report` callable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
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
from lqray.training.batches import Batches
from lqray.training.checkpoint import Checkpoints
from lqray.training.dataset import Batch, Dataset, Split, load_dataset
from lqray.training.evaluation import evaluate
from lqray.training.forward import Objective, prepared
from lqray.training.levels import LevelHistory
from lqray.training.models import build_model
from lqray.training.nonfinite import DivergedError
from lqray.training.optimizers import moment_decay
from lqray.training.regrouping import own_state
from lqray.training.reports import Report, StoppedError
from lqray.training.schedule import in_iterations, learning_rate
from lqray.training.steps import Progress, Setting, steps_of
from lqray.training.tasks import build_task
from lqray.training.telemetry import PhaseTimer, RunningMean, Spent, density_snapshot
from lqray.training.variance import variance_metrics
from lqray.training.wires import Wires, connect

__all__ = ["DivergedError", "Progress", "Report", "Stepped", "StoppedError", "train"]

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
        self.objective = Objective(build_task(trial.task, dataset), trial.model, trial.schedule.accumulate)
        self.headline = headline_of(trial.flat())
        self.metrics = {reference: load_metric(reference) for reference in trial.metrics}
        self.timer, self.progress = PhaseTimer(device), Progress()
        self.stepping = steps_of(
            Setting(trial, self.schedule, wires, device, dataset, self.batches, self.objective, self.timer),
            self.progress,
        )
        self.seconds, self.spent = RunningMean(), Spent(device)
        self.nmse, self.moment_nmse = RunningMean(), RunningMean()
        self.levels = LevelHistory()
        self.wire: dict[str, float] = {}
        self.snapshot: dict[str, Any] | None = None
        self._report = report
        self.stop_every = max(_STOP_EVERY, trial.exchange.every or 0)
        if wires.exchange and trial.telemetry.every and trial.telemetry.moments:
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
            if stop and done < self.iterations and (evaluated or done % self.stop_every == 0) and self.agreed(stop):
                if checkpoints:
                    self.save(done, checkpoints)
                raise StoppedError(done)

        self.stepping.finish()
        self.stepping.settle()
        check_replicas(self.network, self.group, self.device)
        if first < self.iterations:
            self.wire = self.stepping.wire()
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
        trial, every = self.trial, self.trial.telemetry.every
        measured = every > 0 and iteration % every == 0
        started = time.perf_counter()
        variances = {}
        if measured and trial.telemetry.samples:
            variances = variance_metrics(trial, self.wires, self.objective, self.dataset, self.batches, iteration)
        self.timer.begin_step(measured)
        self.spent.begin_step()

        lr = learning_rate(trial.optimizer.lr, self.schedule, iteration)
        losses = self.stepping.take(iteration, feed, lr, measured)

        self.spent.end_step(self.stepping.volume())
        if iteration and (not measured or every == 1):
            self.seconds.add(time.perf_counter() - started)
        found = variances | self.stepping.telemetry(measured)
        self.note(iteration, found)
        if measured:
            self.measure(iteration, losses, lr, found)
        elif found:
            self.report(iteration + 1, found)

    def note(self, iteration: int, found: Mapping[str, float]) -> None:
        """Keep what enters means over the run, and levels."""
        self.levels.add(iteration + 1, found)
        if "quantizer/nmse" in found:
            self.nmse.add(found["quantizer/nmse"])
        if "quantizer/moment_nmse" in found:
            self.moment_nmse.add(found["quantizer/moment_nmse"])

    def measure(self, iteration: int, losses: Tensor, lr: float, found: dict[str, float]) -> None:
        """Report a measured step, of which so much was found already. Collective."""
        metrics = {"train/loss": mean_loss(losses, self.group), "train/lr": lr, **self.timer.metrics(), **found}
        if self.wires.decision and not iteration:
            metrics |= self.wires.decision.metrics()
        if self.schedule.on_nonfinite == "skip":
            metrics["train/skipped_steps"] = self.progress.skipped
        self.report(iteration + 1, metrics)
        if not math.isfinite(metrics["train/loss"]) and self.schedule.on_nonfinite == "stop":
            raise DivergedError(f"the loss is {metrics['train/loss']} at iteration {iteration}; try a smaller lr")

    def evaluation(self) -> dict[str, float]:
        """Metrics of the test set, and of the training set if wanted. Collective."""
        self.stepping.settle()
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
        more |= {"examples": examples, "levels": self.levels if self.levels.series else None}
        self._report(Report(iteration, self.iterations, metrics, evaluated, **more))

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
        self.stepping.settle()
        check_replicas(self.network, self.group, self.device)
        deciding, own = self.stepping.state_dict()
        shared = {
            "network": self.network.state_dict(),
            **deciding,
            "progress": vars(self.progress),
            "nmse": self.nmse.state_dict(),
            "moment_nmse": self.moment_nmse.state_dict(),
            "seconds": self.seconds.state_dict() | {"spent": self.spent.seconds},
            "wire": self.stepping.wire(),
            "snapshot": self.snapshot,
            "levels": self.levels.state_dict(),
            "inputs": {"shape": list(self.dataset.shape), "classes": self.dataset.classes},
        }
        own["bytes_sent"] = self.spent.bytes_sent
        checkpoints.save(self.trial.id, done, shared, own, self.group, best)

    def resume(self, checkpoints: Checkpoints) -> int:
        """Continue from the newest checkpoint; returns how many steps are done. Collective."""
        found = checkpoints.load(self.trial.id, self.group, self.device)
        if found is None:
            return 0
        done, shared, owns = found
        own = own_state(owns, self.stepping, self.wires, done, str(checkpoints.folder))
        if done < self.iterations:
            self.stepping.rehearse()
        self.network.load_state_dict(shared["network"])
        self.stepping.load_state_dict(shared, own)
        vars(self.progress).update(vars(Progress.of(shared["progress"])))
        self.nmse.load_state_dict(shared["nmse"])
        self.moment_nmse.load_state_dict(shared.get("moment_nmse", RunningMean().state_dict()))
        self.seconds.load_state_dict(shared["seconds"])
        self.wire = shared["wire"]
        if "levels" in shared:  # earlier versions kept none
            self.levels.load_state_dict(shared["levels"])
        self.snapshot = shared.get("snapshot")  # of a run that is over: it has no gradient any more
        self.spent.resume(shared["seconds"].get("spent"), own.get("bytes_sent"))
        return int(done)


def mean_loss(losses: Tensor, group: dist.ProcessGroup) -> float:
    """Mean of all workers' losses, of this rank's (workers,). Collective."""
    total = losses.to(torch.float64).sum()
    dist.all_reduce(total, group=group)
    return float(total) / (group.size() * losses.numel())
