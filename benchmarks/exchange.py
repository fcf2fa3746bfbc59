"""Time of one step's exchange between two hosts over limited links: python benchmarks/exchange.py (root, iproute2).

Two network namespaces are two hosts; their links carry 100 Mbit/s, 1 Gbit/s, or as much as the machine can. The step is
DDP's backward pass of a model whose gradients cost next to nothing to compute, so what is timed is the exchange: 11.7
million parameters of ResNet-18, whose gradients are real (of digits, after 20 steps), and 1.7 million normal ones in
the shapes of a ResNet-110 for CIFAR (stages of 16, 32 and 64 channels). Beside the seconds stands what they buy: the
squared error of the mean over both hosts over its energy; PowerSGD's for the best factors of its rank, which its own
only come near. All variants of a rate run in one process, in turn; figures are medians over rounds, ratios medians of
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
RANK = 4
IDEAL = 32 / (3 + 32 / 8192)
VARIANTS = {
    "full_precision": {"method": "full_precision"},
    "all_gather": {"method": "qsgd_inf"},
    "scatter_reduce": {"method": "qsgd_inf"},
    "fp16": {"method": "fp16"},
    "powersgd_rank_4": {"method": "powersgd", "rank": RANK, "start_iteration": 2},
    "eden_2_bits": {"method": "eden", "bits": 2},
    "allocated_2_bits": {"method": "allocated", "bits": 2},
}


def resnet18_gradients(rank: int) -> list[Tensor]:
    """Of a batch of digits that is the rank's own, after 20 steps that all ranks take alike."""
    from sklearn.datasets import load_digits

    from lqray.training.vision import torchvision

    torch.manual_seed(0)
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images = nn.functional.interpolate(images.view(-1, 1, 8, 8).float() / 16, size=32).expand(-1, 3, -1, -1)
    order, model = torch.randperm(len(images)), torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in [*range(20), 20 + rank]:
        own = order[32 * step : 32 * step + 32]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[own]), labels[own]).backward()
        if step < 20:
            optimizer.step()
    return [parameter.grad for parameter in model.parameters()]


def resnet110_gradients(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=generator) * 1e-3 for shape in resnet110_shapes()]


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

    def __init__(self, gradients: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros_like(gradient) for gradient in gradients)
        self.gradients = gradients

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
    for name, gradients_of in (("resnet18", resnet18_gradients), ("resnet110", resnet110_gradients)):
        gradients, errors = gradients_of(dist.get_rank()), {}
        exact = [gradient.clone() for gradient in gradients]
        for gradient in exact:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        phases: dict[str, dict[str, float]] = {}
        sent: dict[str, int] = {}
        wires = {}
        alone = [_seconds_alone(Cheap(gradients)) for _ in range(9)]
        contexts = [connect(trial(variant), Cheap(gradients), group) for variant in VARIANTS]
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
                errors[variant] = nmse([weight.grad for weight in wire.model.module.weights], exact)
        for context in contexts:
            context.__exit__(None, None, None)
        errors["powersgd_rank_4"] = nmse([best_of_rank(gradient) for gradient in exact], exact)
        coordinates = sum(gradient.numel() for gradient in gradients)
        sent["full_precision"] = 4 * coordinates  # of a ring of two
        found[name] = {
            "backward_alone": statistics.median(alone),
            "coordinates": coordinates,
            "seconds": seconds,
            "phases": phases,
            "bytes_sent": sent,
            "nmse": errors,
        }
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)


def nmse(found: list[Tensor], exact: list[Tensor]) -> float:
    """Squared error over energy."""
    lost = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))
    return lost / sum(float(b.square().sum()) for b in exact)


def best_of_rank(gradient: Tensor) -> Tensor:
    """The nearest matrix of PowerSGD's rank; what is no matrix, or too small to gain from it, as it is."""
    rows, columns = gradient.shape[0], gradient[0].numel()
    if gradient.dim() < 2 or RANK * (rows + columns) >= rows * columns:
        return gradient
    u, s, v = torch.linalg.svd(gradient.view(rows, columns), full_matrices=False)
    return (u[:, :RANK] * s[:RANK] @ v[:RANK]).view_as(gradient)


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
        "nmse": found["nmse"],
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
        errors = figures["100mbit"][name]["nmse"]
        each = {variant: slow[variant] * errors[variant] for variant in ("allocated_2_bits", "powersgd_rank_4")}
        fewer = each["allocated_2_bits"] < each["powersgd_rank_4"]
        targets[f"{name}, 100 Mbit/s: allocated, 2 bits: fewer seconds times error than PowerSGD rank 4"] = fewer
        gain = figures["100mbit"][name]["speed_up_over_full_precision"]["allocated_2_bits"]
        targets[f"{name}, 100 Mbit/s: allocated, 2 bits: 14 times float32"] = gain >= 14
        targets[f"{name}, 1 Gbit/s: not slower than float32"] = fast["all_gather"] <= fast["full_precision"]
    record("exchange", {"ideal_speed_up": IDEAL, "bits": 3, "bucket_size": 8192, "hosts": 2, **figures}, targets)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        on_host(int(sys.argv[2]))
    else:
        main()
