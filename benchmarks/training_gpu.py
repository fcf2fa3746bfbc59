"""What quantization costs in training on one GPU: python benchmarks/training_gpu.py (needs an NVIDIA GPU).

ResNet-18 of torchvision on random images of 3 x 64 x 64, batches of 128, one process and its group of NCCL: the
exchange encodes, gathers and decodes, and nothing travels. Step times are medians over the steps of a run; the methods
take turns in rounds, and a ratio is the median over rounds.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import record
from lqray.experiment.options.data import DataOptions
from lqray.experiment.schema import Trial
from lqray.training import loop
from lqray.training.augmentation import chosen_steps
from lqray.training.images import ImageClassification, Images
from lqray.training.worker import run_worker

ROUNDS, STEPS, WARM = 3, 40, 10
METHODS = ("full_precision", "alq", "bf16")


def images(options: DataOptions | None = None) -> ImageClassification:
    """Random images, so many that no batch comes twice in a run."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (128 * STEPS, 3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (128 * STEPS,), generator=generator)
    train, test = Images(pixels, labels), Images(pixels[:64], labels[:64])
    return ImageClassification(train, test, 10, (128.0,) * 3, (74.0,) * 3, chosen_steps("standard", flips=True))


def trial(method: str, amp: str) -> Trial:
    options = {"bits": 3, "bucket_size": 8192, "update_at": [0], "update_every": 0} if method == "alq" else {}
    return Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "torchvision", "architecture": "resnet18", "amp": amp},
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
            "schedule": {"iterations": STEPS, "batch_size": 128},
            "quantizer": {"method": method, **options},
            "telemetry": {"every": 0},
            "workers": 1,
        }
    )


def seconds_of_a_step(method: str, amp: str) -> float:
    """Median after the first steps, the device idle at both ends."""
    stamps: list[float] = []

    def stamp() -> None:
        torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    run_worker(trial(method, amp), lambda report: None, torch.device("cuda"), 4, after_step=stamp)
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[WARM:]))


def main() -> None:
    loop.load_dataset = images  # type: ignore[assignment]
    figures = {}
    for amp in ("none", "bf16"):
        rounds = [{method: seconds_of_a_step(method, amp) for method in METHODS} for _ in range(ROUNDS)]
        figures[f"amp {amp}"] = {
            "milliseconds": {method: 1e3 * statistics.median(r[method] for r in rounds) for method in METHODS},
            "by_full_precision": {
                method: statistics.median(r[method] / r["full_precision"] for r in rounds) for method in METHODS[1:]
            },
        }
    record("training_gpu", {"device": torch.cuda.get_device_name(), **figures}, {})


if __name__ == "__main__":
    main()
