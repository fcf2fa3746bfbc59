"""What compressors cost under AdamW: a small byte transformer on Python's standard library, all workers in one process.

    python benchmarks/adam.py [--seeds 1 2 3 4 5] [--iterations 500] [--beta2 .95] [--only PATTERN] [--jobs 2]

4 workers of 8 sequences of 64 bytes; each worker's gradient is encoded as one tensor, decoded and averaged, as an
exchange does. Every method trains with the same seeds, batches and learning rate. The loss is that of the last 60,000
bytes, less full precision's of the same seed.
Results are added to benchmarks/results/adam.json, run by run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from transformer import BETA2, Training

from lqray.communication.moments import DecodedMoments, OptimizerMoments
from lqray.communication.preconditioner import Preconditioner
from lqray.quantization import Compressor, create

RESULTS = Path(__file__).parent / "results" / "adam.json"
METHODS = {
    "full_precision": None,
    "eden 1": ("eden", {"bits": 1}, False),
    "eden 2": ("eden", {"bits": 2}, False),
    "eden 3": ("eden", {"bits": 3}, False),
    "eden 1 preconditioned": ("eden", {"bits": 1}, True),
    "eden 2 preconditioned": ("eden", {"bits": 2}, True),
    "eden 2 by the optimizer's": ("eden", {"bits": 2}, "optimizer"),
    "allocated 1.13": ("allocated", {"bits": 1.13}, False),
    "allocated 1.13 preconditioned": ("allocated", {"bits": 1.13}, True),
    "allocated 1.5": ("allocated", {"bits": 1.5}, False),
    "allocated 2": ("allocated", {"bits": 2.0}, False),
    "allocated 2, exponent 1": ("allocated", {"bits": 2.0, "exponent": 1.0}, False),
    "allocated 2, exponent .25": ("allocated", {"bits": 2.0, "exponent": 0.25}, False),
    "allocated 2, blocks of 32": ("allocated", {"bits": 2.0, "bucket_size": 32}, False),
    "allocated 2, blocks of 128": ("allocated", {"bits": 2.0, "bucket_size": 128}, False),
    "allocated 2 preconditioned": ("allocated", {"bits": 2.0}, True),
    "allocated 2 by the optimizer's": ("allocated", {"bits": 2.0}, "optimizer"),
    "qsgd_inf 3": ("qsgd_inf", {"bits": 3, "bucket_size": 512}, False),
}


def averaged(gradients: Tensor, compressor: Compressor, seed: int, step: int) -> Tensor:
    """The mean of what all workers' gradients decode to."""
    payloads = [compressor.encode(one, seed=100 * seed + worker, offset=step) for worker, one in enumerate(gradients)]
    return compressor.decode_mean(torch.stack([payload.buffer for payload in payloads]), payloads[0])


def preconditioner_of(chosen: bool | str, training: Training) -> Preconditioner | None:
    """As `exchange.precondition` has it."""
    if chosen == "optimizer":
        moments = OptimizerMoments()
        moments.follow(training.optimizer, dict(zip(training.parameters, training.names, strict=True)))
        return Preconditioner(moments)
    return Preconditioner(DecodedMoments(0.95)) if chosen else None


def train(name: str, seed: int, iterations: int, beta2: float = BETA2) -> dict[str, float | str | int]:
    training = Training(seed, iterations, beta2)
    chosen = METHODS[name]
    compressor = create(chosen[0], **chosen[1]) if chosen else None
    preconditioner = preconditioner_of(chosen[2], training) if chosen else None
    keys = [(name, size) for name, size in zip(training.names, training.sizes, strict=True)]
    moment = torch.zeros(training.n)
    lost, relative, bits = [], [], []
    started = time.perf_counter()
    for step in range(iterations):
        gradients = training.gradients()
        mean = exact = gradients.mean(dim=0)
        if compressor:
            if preconditioner and isinstance(preconditioner.moments, OptimizerMoments):
                preconditioner.moments.check()
            c = preconditioner.scale(exact, keys) if preconditioner else None
            mean = averaged(gradients if c is None else gradients / c, compressor, seed, step)
            mean = mean if c is None else mean * c
            bits.append(compressor.encode(exact, seed=0, offset=0).bits_per_coordinate)
        if preconditioner:
            preconditioner.moments.keep(mean, keys)
        moment = 0.95 * moment + 0.05 * mean.square()
        if step >= 50 and step % 10 == 0:
            root = moment.sqrt() + 1e-8
            lost.append(float((mean - exact).square().sum() / exact.square().sum()))
            relative.append(float(((mean - exact) / root).square().sum() / (exact / root).square().sum()))
        training.step(mean)
    return {
        "method": name,
        "seed": seed,
        "iterations": iterations,
        "beta2": beta2,
        "loss": training.held_out_loss(),
        "bits per coordinate": sum(bits) / len(bits) if bits else 32.0,
        "NMSE of the mean": sum(lost) / len(lost),
        "relative to the second moment": sum(relative) / len(relative),
        "seconds": time.perf_counter() - started,
    }


def recorded() -> list[dict]:
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def beta2_of(run: dict) -> float:
    """Runs before it could be chosen had the one."""
    return run.get("beta2", BETA2)


def table(every: list[dict], iterations: int, beta2: float = BETA2) -> str:
    """Loss over full precision's of the same seed, per method."""
    runs = [run for run in every if run["iterations"] == iterations and beta2_of(run) == beta2]
    exact = {run["seed"]: run["loss"] for run in runs if run["method"] == "full_precision"}
    lines = [
        "| method | bits | loss over full precision, seed by seed | mean | NMSE of the mean | relative to v |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        own = [run for run in runs if run["method"] == method and run["seed"] in exact]
        if not own or method == "full_precision":
            continue
        own.sort(key=lambda run: run["seed"])
        over = [run["loss"] - exact[run["seed"]] for run in own]
        shown = " ".join(f"{one:+.3f}" for one in over)
        mean = {
            key: sum(run[key] for run in own) / len(own)
            for key in ("bits per coordinate", "NMSE of the mean", "relative to the second moment")
        }
        lines.append(
            f"| {method} | {mean['bits per coordinate']:.3f} | {shown} | {sum(over) / len(over):+.4f} | "
            f"{mean['NMSE of the mean']:.4f} | {mean['relative to the second moment']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--beta2", type=float, default=BETA2, help="of AdamW")
    parser.add_argument("--only", default="*", help="a pattern of methods")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    known = {(run["method"], run["seed"], run["iterations"], beta2_of(run)) for run in recorded()}
    work = [
        (method, seed, chosen.iterations, chosen.beta2)
        for seed in chosen.seeds
        for method in METHODS
        if fnmatch.fnmatch(method, chosen.only) and (method, seed, chosen.iterations, chosen.beta2) not in known
    ]
    with multiprocessing.get_context("spawn").Pool(chosen.jobs) as pool:
        for done in pool.imap_unordered(_train, work):
            RESULTS.write_text(json.dumps({"torch": torch.__version__, "runs": [*recorded(), done]}, indent=1) + "\n")
            print(json.dumps(done), file=sys.stderr, flush=True)
    print(table(recorded(), chosen.iterations, chosen.beta2))


def _train(work: tuple[str, int, int, float]) -> dict:
    return train(*work)


if __name__ == "__main__":
    main()
