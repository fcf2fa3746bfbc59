"""Variance, bias and signal-to-noise ratio of the gradient's estimators, from gradients beside the training."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.training.batches import Batches
from lqray.training.dataset import Dataset
from lqray.training.extra_gradients import extra_gradient
from lqray.training.forward import Objective
from lqray.training.wires import Wires


class Moments:
    """Mean and variance of each coordinate of the vectors added so far (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, vector: Tensor) -> None:
        """One more vector, (n,)."""
        self.count += 1
        if self.count == 1:
            self.mean, self._squares = vector.clone(), torch.zeros_like(vector)
            return
        distance = vector - self.mean
        self.mean += distance / self.count
        self._squares += distance * (vector - self.mean)

    @property
    def variance(self) -> Tensor:
        """Of each coordinate, (n,), without bias; NaN with fewer than two vectors."""
        return self._squares / (self.count - 1) if self.count > 1 else torch.full_like(self._squares, math.nan)

    @property
    def mean_log_snr(self) -> float:
        """Mean of log(mean**2 / variance) over the coordinates that have both; NaN without any."""
        variance, power = self.variance, self.mean.square()
        both = (variance > 0) & (power > 0)
        return float((power[both].double().log() - variance[both].double().log()).mean())


def variance_metrics(
    trial: Trial, wires: Wires, objective: Objective, dataset: Dataset, batches: Batches, iteration: int
) -> dict[str, float]:
    """From `telemetry.samples` gradients of each worker at the current parameters. Collective; leaves no trace.

    An estimator is the mean over all workers of one gradient each: exact, or as quantized. `gradient_variance`,
    `quantized_variance`: of a coordinate, mean over all. `gradient_bias`: mean absolute difference of the two
    estimators' means. `gradient_snr`, `quantized_snr`: mean over the coordinates of log(mean**2 / variance). `nmse`:
    sum of ||Q(g) - g||**2 over sum of ||g||**2 of single workers' gradients. Parameters that are never quantized
    (`exchange.skip`) are left out of all of them.
    """
    exchange = wires.exchange
    exact, quantized = Moments(), Moments()
    errors = torch.zeros(2, dtype=torch.float64)
    for sample in range(trial.telemetry.samples):
        sums: list[Tensor] = []
        for worker in wires.workers:
            chosen = batches.extra_indices(iteration, sample, worker, "telemetry")
            seed = derive_seed(trial.seed, "telemetry forward", iteration, sample, worker)
            gradient = extra_gradient(wires.network, objective, dataset.train_batch(chosen, seed), seed)
            if exchange:
                own = exchange.quantized_part(gradient)
                rounding = derive_seed(trial.seed, "telemetry rounding", sample, worker)
                place = exchange.place(wires.workers.index(worker), sample)
                rounded = exchange.rounded(gradient, seed=rounding, offset=iteration, place=place)
                pair = _at_least_float32(torch.stack([own, rounded]))
                errors = errors.to(pair.device)
                errors += torch.stack([(pair[1] - pair[0]).double().square().sum(), pair[0].double().square().sum()])
            else:
                pair = _at_least_float32(torch.cat([part.reshape(-1) for part in gradient.values()])[None])
            sums = [pair if not sums else sums[0] + pair]
        total = sums[0]
        dist.all_reduce(total, group=wires.group)
        total /= trial.workers
        exact.add(total[0])
        if exchange:
            quantized.add(total[1])
    metrics = {
        "quantizer/gradient_variance": float(exact.variance.double().mean()),
        "quantizer/gradient_snr": exact.mean_log_snr,
    }
    if not exchange:
        return metrics
    dist.all_reduce(errors, group=wires.group)
    error, energy = errors.tolist()
    variance = float(quantized.variance.double().mean())
    of_exact = metrics["quantizer/gradient_variance"]
    return metrics | {
        "quantizer/quantized_variance": variance,
        "quantizer/variance_ratio": variance / of_exact if of_exact else math.nan,
        "quantizer/gradient_bias": float((quantized.mean - exact.mean).abs().double().mean()),
        "quantizer/quantized_snr": quantized.mean_log_snr,
        "quantizer/sampled_nmse": error / energy if energy else 0.0,
    }


def _at_least_float32(gradients: Tensor) -> Tensor:
    """What is added up and subtracted: in bfloat16 that would be of other gradients."""
    return gradients.to(torch.promote_types(gradients.dtype, torch.float32))
