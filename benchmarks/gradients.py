"""Gradients to measure compressors on, as `lqray capture` takes them, and what no compressor of them can beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformer import Training

from lqray.experiment.grid import experiment_from_text
from lqray.training.capture import Captured, capture, read_captures

_COMMON = """
  workers: 4
  quantizer: {method: full_precision}
resources: {processes: 1, cpus_per_process: 1}
"""
NETWORKS = {
    "ResNet-8, Fashion-MNIST": """
name: resnet8
base:
  data: {name: fashion_mnist, root: /usr/share/datasets/fashion-mnist}
  model: {name: resnet, depth: 8}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1.0e-4}
  schedule: {iterations: 1000, batch_size: 32, evaluate_every: 1000}"""
    + _COMMON,
    "MLP, digits": """
name: mlp
base:
  data: {name: digits}
  model: {name: mlp, layers: [256, 128]}
  optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
  schedule: {iterations: 1000, batch_size: 16, evaluate_every: 1000}"""
    + _COMMON,
}
"""Trained on exact gradients by four workers. Fashion-MNIST is Debian's package dataset-fashion-mnist."""
TRANSFORMER = "transformer, Python's library"


@dataclass(frozen=True)
class Gradients:
    """Of one network after some steps. fit: what levels are fitted to; held: what is measured; (samples, workers, n)
    each, of different minibatches. shapes: of the parameters whose coordinates lie one after the other in n."""

    name: str
    fit: Tensor
    held: Tensor
    shapes: list[tuple[int, ...]]


def captured(name: str, at: list[int], samples: int = 8) -> list[Gradients]:
    """Of a network of NETWORKS, captured now: half of the samples to fit to, half to measure."""
    experiment = experiment_from_text(NETWORKS[name], name)
    found = capture(experiment.find(None).trial, experiment.resources, at, samples)
    return [_halves(name, one) for one in found]


def of_transformer(after: int, samples: int = 8) -> Gradients:
    """Of the byte transformer of benchmarks/adam.py after so many steps of AdamW on exact gradients: half of the
    samples to fit to, half to measure."""
    training = Training(seed=1, iterations=after)
    for _ in range(after):
        training.step(training.gradients().mean(dim=0))
    flat = torch.stack([training.gradients() for _ in range(samples)])
    return Gradients(f"{TRANSFORMER}, {after} steps", flat[: samples // 2], flat[samples // 2 :], training.shapes)


def from_file(file: Path) -> list[Gradients]:
    """Of a file that `lqray capture` wrote, with two samples or more."""
    return [_halves(file.stem, one) for one in read_captures(file)]


def _halves(name: str, one: Captured) -> Gradients:
    flat, shapes = one.flat(), [tuple(each.shape[2:]) for each in one.gradients.values()]
    half = len(flat) // 2
    if not half:
        raise SystemExit(
            f"{name}: one sample was captured; allowed: two or more, to fit to one half and measure the other"
        )
    return Gradients(f"{name}, {one.iteration} steps", flat[:half], flat[half:], shapes)


def block_gaussian_nmse(
    vectors: NDArray[np.float64], bits: NDArray[np.float64], block: int = 64
) -> NDArray[np.float64]:
    """Least NMSE of vectors (m, n) at `bits` per coordinate, (R,), were each block of coordinates independent normal
    ones of the block's own variance, known to the decoder for free: reverse water-filling over the blocks of a vector
    (Cover and Thomas, section 10.3.3), errors and energies added up over the vectors."""
    errors, energy = np.zeros(bits.size), 0.0
    for vector in vectors:
        squares = np.add.reduceat(np.square(vector), np.arange(0, vector.size, block))
        counts = np.minimum(block, vector.size - block * np.arange(squares.size))
        variances = squares / counts
        energy += float(squares.sum())
        for index, rate in enumerate(bits):
            errors[index] += _water_filled(variances, counts, float(rate) * vector.size)
    return errors / energy


def _water_filled(variances: NDArray[np.float64], counts: NDArray[np.int64], total_bits: float) -> float:
    """Error of components of these variances, so many of each, in that many bits altogether."""
    positive = variances > 0
    if not positive.any():
        return 0.0
    variance, count = variances[positive], counts[positive]
    low, high = np.log(variance.min()) - 64.0, np.log(variance.max())
    for _ in range(100):
        level = 0.5 * (low + high)
        spent = float(count @ np.maximum(np.log(variance) - level, 0.0)) / (2.0 * np.log(2.0))
        low, high = (level, high) if spent > total_bits else (low, level)
    return float(count @ np.minimum(variance, np.exp(0.5 * (low + high))))
