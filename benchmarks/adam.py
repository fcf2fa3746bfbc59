"""What compressors cost under AdamW: a small byte transformer on Python's standard library, all workers in one process.

    python benchmarks/adam.py [--seeds 1 2 3 4 5] [--iterations 500] [--only PATTERN] [--jobs 2]

4 workers of 8 sequences of 64 bytes; each worker's gradient is encoded as one tensor, decoded and averaged, as an
exchange does. Every method trains with the same seeds, batches and learning rate. The loss is that of the last 60,000
bytes, less full precision's of the same seed.
Results are added to benchmarks/results/adam.json, run by run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import multiprocessing
import sys
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lqray.communication.preconditioner import Preconditioner
from lqray.quantization import Compressor, create

RESULTS = Path(__file__).parent / "results" / "adam.json"
WORKERS, BATCH, CONTEXT, WIDTH, HEADS, LAYERS = 4, 8, 64, 64, 4, 3
HELD_OUT = 60_000
RATE = 3e-3
METHODS = {
    "full_precision": None,
    "eden 1": ("eden", {"bits": 1}, False),
    "eden 2": ("eden", {"bits": 2}, False),
    "eden 3": ("eden", {"bits": 3}, False),
    "eden 1 preconditioned": ("eden", {"bits": 1}, True),
    "eden 2 preconditioned": ("eden", {"bits": 2}, True),
    "allocated 1.13": ("allocated", {"bits": 1.13}, False),
    "allocated 1.13 preconditioned": ("allocated", {"bits": 1.13}, True),
    "allocated 1.5": ("allocated", {"bits": 1.5}, False),
    "allocated 2": ("allocated", {"bits": 2.0}, False),
    "allocated 2, exponent 1": ("allocated", {"bits": 2.0, "exponent": 1.0}, False),
    "allocated 2, exponent .25": ("allocated", {"bits": 2.0, "exponent": 0.25}, False),
    "allocated 2, blocks of 32": ("allocated", {"bits": 2.0, "bucket_size": 32}, False),
    "allocated 2, blocks of 128": ("allocated", {"bits": 2.0, "bucket_size": 128}, False),
    "allocated 2 preconditioned": ("allocated", {"bits": 2.0}, True),
    "qsgd_inf 3": ("qsgd_inf", {"bits": 3, "bucket_size": 512}, False),
}


def corpus() -> Tensor:
    """The bytes of Python's standard library, int64."""
    library = Path(sysconfig.get_path("stdlib"))
    text = b"".join(file.read_bytes() for file in sorted(library.glob("*.py")))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64)


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a normalization and beside what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.forward_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projections, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.projections(self.attention_norm(x)).view(batch, length, 3, HEADS, width // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.layers(self.forward_norm(x))


class Transformer(nn.Module):
    """Of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
        nn.init.normal_(self.bytes.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(self.blocks(self.bytes(x) + self.places(torch.arange(x.shape[1])))))


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    return functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def averaged(gradients: list[Tensor], compressor: Compressor, seed: int, step: int) -> Tensor:
    """The mean of what all workers' gradients decode to."""
    payloads = [compressor.encode(one, seed=100 * seed + worker, offset=step) for worker, one in enumerate(gradients)]
    return compressor.decode_mean(torch.stack([payload.buffer for payload in payloads]), payloads[0])


def train(name: str, seed: int, iterations: int) -> dict[str, float | str | int]:
    torch.set_num_threads(1)
    data = corpus()
    training, held_out = data[:-HELD_OUT], data[-HELD_OUT:]
    torch.manual_seed(seed)
    model = Transformer()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, betas=(0.9, 0.95))
    batches = torch.Generator().manual_seed(1000 + seed)
    chosen = METHODS[name]
    compressor = create(chosen[0], **chosen[1]) if chosen else None
    preconditioner = Preconditioner() if chosen and chosen[2] else None
    keys = [("all", sum(parameter.numel() for parameter in parameters))]
    moment = torch.zeros(keys[0][1])
    lost, relative, bits = [], [], []
    started = time.perf_counter()
    for step in range(iterations):
        share = min(1, (step + 1) / 50) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / iterations)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        gradients = []
        for _ in range(WORKERS):
            first = torch.randint(0, len(training) - CONTEXT - 1, (BATCH,), generator=batches)
            loss = loss_of(model, training[first[:, None] + torch.arange(CONTEXT + 1)])
            gradients.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)]))
        exact = torch.stack(gradients).mean(dim=0)
        mean = exact
        if compressor:
            c = preconditioner.scale(exact, keys) if preconditioner else None
            mean = averaged([one if c is None else one / c for one in gradients], compressor, seed, step)
            mean = mean if c is None else mean * c
            bits.append(compressor.encode(exact, seed=0, offset=0).bits_per_coordinate)
        if preconditioner:
            preconditioner.keep(mean, keys)
        moment = 0.95 * moment + 0.05 * mean.square()
        if step >= 50 and step % 10 == 0:
            root = moment.sqrt() + 1e-8
            lost.append(float((mean - exact).square().sum() / exact.square().sum()))
            relative.append(float(((mean - exact) / root).square().sum() / (exact / root).square().sum()))
        for parameter, part in zip(parameters, mean.split([one.numel() for one in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
    with torch.no_grad():
        rows = held_out[: (HELD_OUT - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
        loss = torch.stack([loss_of(model, part) for part in rows.split(64)]).mean()
    return {
        "method": name,
        "seed": seed,
        "iterations": iterations,
        "loss": float(loss),
        "bits per coordinate": sum(bits) / len(bits) if bits else 32.0,
        "NMSE of the mean": sum(lost) / len(lost),
        "relative to the second moment": sum(relative) / len(relative),
        "seconds": time.perf_counter() - started,
    }


def recorded() -> list[dict]:
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def table(runs: list[dict], iterations: int) -> str:
    """Loss over full precision's of the same seed, per method."""
    exact = {
        run["seed"]: run["loss"]
        for run in runs
        if run["method"] == "full_precision" and run["iterations"] == iterations
    }
    lines = [
        "| method | bits | loss over full precision, seed by seed | mean | NMSE of the mean | relative to v |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        own = [
            run for run in runs if run["method"] == method and run["iterations"] == iterations and run["seed"] in exact
        ]
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
    parser.add_argument("--only", default="*", help="a pattern of methods")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    known = {(run["method"], run["seed"], run["iterations"]) for run in recorded()}
    work = [
        (method, seed, chosen.iterations)
        for seed in chosen.seeds
        for method in METHODS
        if fnmatch.fnmatch(method, chosen.only) and (method, seed, chosen.iterations) not in known
    ]
    with multiprocessing.get_context("spawn").Pool(chosen.jobs) as pool:
        for done in pool.imap_unordered(_train, work):
            RESULTS.write_text(json.dumps({"torch": torch.__version__, "runs": [*recorded(), done]}, indent=1) + "\n")
            print(json.dumps(done), file=sys.stderr, flush=True)
    print(table(recorded(), chosen.iterations))


def _train(work: tuple[str, int, int]) -> dict:
    return train(*work)


if __name__ == "__main__":
    main()
