"""What quantization, the data path and checkpoints cost in training. Two processes on loopback, one thread each.

    python benchmarks/training.py

Step times are medians over steps of one run; methods take turns in rounds, and the ratio is the median over rounds.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpt_steps
from benchmarks.record import record
from lqray.experiment.options.data import DataOptions
from lqray.experiment.schema import Trial
from lqray.training import loop
from lqray.training.augmentation import chosen_steps
from lqray.training.checkpoint import Checkpoints
from lqray.training.images import ImageClassification, Images
from lqray.training.worker import run_worker

ROUNDS, STEPS = 5, 24


def cifar_like(options: DataOptions | None = None) -> ImageClassification:
    """Random 32x32 images in the form of CIFAR-10, with its crop and flip."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (4000,), generator=generator)
    train, test = Images(pixels, labels), Images(pixels[:64], labels[:64])
    return ImageClassification(train, test, 10, (128.0,) * 3, (74.0,) * 3, chosen_steps("standard", flips=True))


def trial(method: str, depth: int, iterations: int, every: int = 0) -> Trial:
    """Batches of 128 for each of two workers."""
    quantizer: dict[str, Any] = {"method": method}
    if method != "full_precision":
        quantizer |= {"bits": 3, "bucket_size": 8192, "update_at": [0], "update_every": 0}
    return Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "resnet", "depth": depth},
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
            "schedule": {"iterations": iterations, "batch_size": 128},
            "quantizer": quantizer,
            "telemetry": {"every": every},
            "workers": 2,
        }
    )


def steps_of(method: str) -> float:
    """Median seconds of a step after the first four, in this rank's group."""
    stamps: list[float] = []
    run_worker(
        trial(method, 8, STEPS),
        lambda report: None,
        torch.device("cpu"),
        1,
        after_step=lambda _: stamps.append(time.perf_counter()),
    )
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[4:]))


def overhead(rank: int) -> dict[str, Any]:
    """alq against full_precision, in turn."""
    loop.load_dataset = cifar_like  # type: ignore[assignment]
    rounds = [{method: steps_of(method) for method in ("full_precision", "alq")} for _ in range(ROUNDS)]
    return {
        "full_precision_seconds": statistics.median(r["full_precision"] for r in rounds),
        "alq_seconds": statistics.median(r["alq"] for r in rounds),
        "alq_by_full_precision": statistics.median(r["alq"] / r["full_precision"] for r in rounds),
    }


def data_path(rank: int) -> dict[str, Any]:
    """Share of a step that crop, flip and normalization of its batch take, on the same thread."""
    loop.load_dataset = cifar_like  # type: ignore[assignment]
    dataset = cifar_like()
    chosen = torch.randint(0, 4000, (128,))
    shares = []
    for _ in range(ROUNDS):
        step = steps_of("full_precision")
        seconds = []
        for seed in range(50):
            started = time.perf_counter()
            dataset.train_batch(chosen, seed)
            seconds.append(time.perf_counter() - started)
        shares.append((statistics.median(seconds), statistics.median(seconds) / step))
    return {"batch_seconds": statistics.median(s[0] for s in shares), "share": statistics.median(s[1] for s in shares)}


def checkpoints(rank: int, folder: str) -> dict[str, Any]:
    """Seconds to write a checkpoint of ResNet-110 with momentum and residuals, and to read it again."""
    loop.load_dataset = cifar_like  # type: ignore[assignment]
    seconds: dict[str, list[float]] = {"save": [], "load": []}

    class Timed(Checkpoints):
        def save(self, *arguments: Any, **named: Any) -> None:
            started = time.perf_counter()
            super().save(*arguments, **named)
            dist.barrier()
            seconds["save"].append(time.perf_counter() - started)

        def load(self, *arguments: Any) -> Any:
            started = time.perf_counter()
            found = super().load(*arguments)
            seconds["load"].append(time.perf_counter() - started)
            return found

    small = trial("alq", 110, 2).model_copy(
        update={"schedule": trial("alq", 110, 2).schedule.model_copy(update={"batch_size": 4})}
    )
    kept = Timed(Path(folder), every=1, keep=2)
    for _ in range(3):
        run_worker(small, lambda report: None, torch.device("cpu"), 1, checkpoints=kept)
    size = max(file.stat().st_size for file in Path(folder).glob("step-*.pt")) if rank == 0 else 0
    return {
        "save_seconds": statistics.median(seconds["save"]),
        "load_seconds": statistics.median(seconds["load"][1:]),
        "megabytes": size / 1e6,
    }


def run_pair(function: Any, *arguments: Any) -> dict[str, Any]:
    """function(rank, ...) on two processes; rank 0's result."""
    with tempfile.TemporaryDirectory() as folder:
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        start_processes(_rank, (folder, queue, function, arguments), nprocs=2, join=True, start_method="spawn")
        result: dict[str, Any] = queue.get()
        return result


def _rank(rank: int, folder: str, queue: Any, function: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = function(rank, *arguments)
    dist.barrier()
    if rank == 0:
        queue.put(found)
    dist.destroy_process_group()
    os._exit(0)


def main() -> None:
    """Measure and record."""
    figures = {"overhead": run_pair(overhead), "data_path": run_pair(data_path)}
    with tempfile.TemporaryDirectory() as folder:
        figures["checkpoint"] = run_pair(checkpoints, folder)
    figures["gpt_small"] = run_pair(gpt_steps.steps) | run_pair(gpt_steps.reading)
    gpt = figures["gpt_small"]
    record(
        "training",
        figures,
        {
            "step of ResNet-8, alq 3 bits, at most 1.15 of full_precision's": (
                figures["overhead"]["alq_by_full_precision"] <= 1.15
            ),
            "crop and flip under 5% of a step": figures["data_path"]["share"] < 0.05,
            "checkpoint of ResNet-110 under 1 s": figures["checkpoint"]["save_seconds"] < 1,
            "resume of ResNet-110 under 1 s": figures["checkpoint"]["load_seconds"] < 1,
            "step of the small GPT, 3 bits, at most 1.10 of full_precision's": (
                max(gpt[f"{name}_3_bits_by_full_precision"] for name in ("alq", "eden", "allocated")) <= 1.10
            ),
            "step of lqray's loop at most 1.05 of one written by hand": gpt["loop_by_hand_written"] <= 1.05,
            "text read 50 times as fast as it is trained on": gpt["read_by_trained"] >= 50,
        },
    )


if __name__ == "__main__":
    main()
