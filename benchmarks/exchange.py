"""Time of one step's exchange between two hosts over limited links: python benchmarks/exchange.py (root, iproute2).

Two network namespaces are two hosts; their links carry 100 Mbit/s, 1 Gbit/s, or as much as the machine can. The step is
DDP's backward pass of a model whose gradients cost next to nothing to compute, so what is timed is the exchange: 11.7
million parameters in ResNet-18's tensors, and 1.7 million in those of a ResNet-110 for CIFAR (stages of 16, 32 and 64
channels). All variants of a rate run in one process, in turn; figures are medians over rounds, ratios medians of
ratios within a round.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from record import record
from torch import Tensor, nn

from lqray.experiment.schema import Trial
from lqray.training.loop import connect

RATES = {"100mbit": 7, "1gbit": 15, "unlimited": 15}
IDEAL = 32 / (3 + 32 / 8192)
VARIANTS = {
    "full_precision": {"method": "full_precision"},
    "all_gather": {"method": "qsgd_inf"},
    "scatter_reduce": {"method": "qsgd_inf"},
    "fp16": {"method": "fp16"},
    "powersgd_rank_4": {"method": "powersgd", "rank": 4, "start_iteration": 2},
}


def resnet18_shapes() -> list[tuple[int, ...]]:
    from lqray.training.vision import torchvision

    return [tuple(parameter.shape) for parameter in torchvision.models.resnet18().parameters()]


def resnet110_shapes() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(36):
            shapes += [(width, channels, 3, 3), (width,), (width,)]
            channels = width
    return [*shapes, (10, 64), (10,)]


class Cheap(nn.Module):
    """A model whose backward pass is gradients that are there already."""

    def __init__(self, shapes: list[tuple[int, ...]], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.gradients = [torch.randn(shape, generator=generator) * 1e-3 for shape in shapes]

    def forward(self) -> Tensor:
        return _Given.apply(self.gradients, *self.weights)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradients, *weights):
        ctx.gradients = gradients
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.gradients


def trial(variant: str) -> Trial:
    return Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "cnn"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"iterations": 1, "batch_size": 1},
            "workers": 2,
            "quantizer": VARIANTS[variant],
            "exchange": {"reduction": variant if variant == "scatter_reduce" else "all_gather", "bucket_cap_mb": 2},
        }
    )


def on_host(rounds: int) -> None:
    """On each host: every variant in turn, `rounds` times; rank 0 prints the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group, found = dist.group.WORLD, {}
    for name, shapes in (("resnet18", resnet18_shapes()), ("resnet110", resnet110_shapes())):
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        phases: dict[str, dict[str, float]] = {}
        sent: dict[str, int] = {}
        wires = {}
        alone = [_seconds_alone(Cheap(shapes, 0)) for _ in range(9)]
        contexts = [connect(trial(variant), Cheap(shapes, dist.get_rank()), group) for variant in VARIANTS]
        for variant, context in zip(VARIANTS, contexts, strict=True):
            wires[variant] = context.__enter__()
        for step in range(rounds + 3):  # DDP rebuilds its buckets after the first, PowerSGD starts after two
            for variant, wire in wires.items():
                if wire.exchange:
                    wire.exchange.begin_step(step)
                if wire.baseline:
                    wire.baseline.begin_step()
                dist.barrier()
                started = time.perf_counter()
                wire.model.zero_grad()
                wire.model().backward()
                took = torch.tensor([time.perf_counter() - started])
                dist.all_reduce(took, op=dist.ReduceOp.MAX)
                if step >= 3:
                    seconds[variant].append(float(took))
                if wire.exchange:
                    volume = wire.exchange.volume
                    phases[variant] = {phase: volume.seconds(phase) for phase in ("encode", "exchange", "decode")}
                if wire.exchange or wire.baseline:
                    sent[variant] = (wire.exchange or wire.baseline).volume.bytes_sent
        for context in contexts:
            context.__exit__(None, None, None)
        coordinates = sum(torch.Size(shape).numel() for shape in shapes)
        sent["full_precision"] = 4 * coordinates  # of a ring of two
        found[name] = {
            "backward_alone": statistics.median(alone),
            "coordinates": coordinates,
            "seconds": seconds,
            "phases": phases,
            "bytes_sent": sent,
        }
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)


def _seconds_alone(model: Cheap) -> float:
    model().backward()
    model.zero_grad()
    started = time.perf_counter()
    model().backward()
    return time.perf_counter() - started


def figures_of(found: dict, rate: str) -> dict:
    """Medians, and ratios within rounds, of one model at one rate."""
    seconds = found["seconds"]
    full = seconds["full_precision"]
    speed_up = {
        variant: statistics.median(base / own for base, own in zip(full, each, strict=True))
        for variant, each in seconds.items()
    }
    medians = {variant: statistics.median(each) for variant, each in seconds.items()}
    result = {
        "coordinates": found["coordinates"],
        "median_seconds": medians,
        "speed_up_over_full_precision": speed_up,
        "share_of_ideal_speed_up": {v: speed_up[v] / IDEAL for v in ("all_gather", "scatter_reduce")},
        "bytes_sent": found["bytes_sent"],
        "backward_pass_alone_seconds": found["backward_alone"],
        "last_step_phase_seconds": found["phases"],
    }
    if rate == "unlimited":
        # Quantizing pays where the bytes that it saves take longer than encoding and decoding.
        phases = found["phases"]["all_gather"]
        saved = 4 * found["coordinates"] - found["bytes_sent"]["all_gather"]
        result["crossover_megabits_per_second"] = 8e-6 * saved / (phases["encode"] + phases["decode"])
    return result


def main() -> None:
    from tests.testing.shaped_hosts import shaped_hosts, why_not

    if reason := why_not():
        print(f"benchmarks/exchange.py is left out: {reason}", file=sys.stderr)
        return
    figures: dict[str, dict] = {}
    for rate, rounds in RATES.items():
        with shaped_hosts(2, None if rate == "unlimited" else rate) as hosts:
            said = hosts.run([sys.executable, __file__, "--host", str(rounds)], timeout=1800)
        line = next(line for line in said[0].splitlines() if line.startswith("RESULT "))
        found = json.loads(line.removeprefix("RESULT "))
        figures[rate] = {name: figures_of(each, rate) for name, each in found.items()}
    targets = {}
    for name in ("resnet18", "resnet110"):
        slow, fast = (figures[rate][name]["median_seconds"] for rate in ("100mbit", "1gbit"))
        share = figures["100mbit"][name]["share_of_ideal_speed_up"]["all_gather"]
        targets[f"{name}, 100 Mbit/s: 85% of the ideal speed-up over float32"] = share >= 0.85
        targets[f"{name}, 100 Mbit/s: faster than fp16"] = slow["all_gather"] < slow["fp16"]
        targets[f"{name}, 100 Mbit/s: faster than PowerSGD rank 4"] = slow["all_gather"] < slow["powersgd_rank_4"]
        targets[f"{name}, 1 Gbit/s: not slower than float32"] = fast["all_gather"] <= fast["full_precision"]
    record("exchange", {"ideal_speed_up": IDEAL, "bits": 3, "bucket_size": 8192, "hosts": 2, **figures}, targets)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        on_host(int(sys.argv[2]))
    else:
        main()
