"""A small network that ranks of a process group train over a gradient exchange."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import GradientExchange, check_replicas
from lqray.communication.checks.replicas import checksum
from lqray.communication.reductions import all_gather as all_gather_module
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Quantizer
from tests.testing.methods import ADAPTIVE


def network() -> nn.Module:
    """The same at every call, on every rank: 1,203 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (8, 20) and labels (8,) of a rank at a step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 20, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def make_exchange(
    rank: int, method: str, by_layer: bool = False, reduction: str = "all_gather", **options
) -> GradientExchange:
    """In the default group, with buckets of 64."""
    quantizer = Quantizer.create(method, bucket_size=64, **options)
    exchange = ExchangeOptions(reduction=reduction, buckets="layer" if by_layer else "network")
    return GradientExchange(quantizer, exchange, dist.group.WORLD, [derive_seed(1, "rounding", rank)])


def train_quantized(
    rank: int, method: str, bucket_cap_mb: float, by_layer: bool = False, reduction: str = "all_gather", **options
) -> dict:
    """50 quantized steps; what the collective was handed is counted where it is called."""
    handed = []
    original = all_gather_module.all_gather_into_tensor

    def counting(output, own, group):
        handed.append(own.numel() * own.element_size())
        return original(output, own, group)

    all_gather_module.all_gather_into_tensor = counting
    adaptive = {"update_at": (0, 5), "update_every": 10} if method in ADAPTIVE else {}
    exchange = make_exchange(rank, method, by_layer, reduction, **adaptive, **options)
    model = DistributedDataParallel(network(), bucket_cap_mb=bucket_cap_mb)
    exchange.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    counted, sums, updates = 0, [], []
    for step in range(50):
        exchange.begin_step(step, measure=step == 49)
        images, labels = batch(rank, step)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if exchange.update_levels():
            updates.append(step)
        optimizer.step()
        counted += exchange.volume.payload_bytes
        sums.append(checksum(model))
    check_replicas(model, dist.group.WORLD, torch.device("cpu"))
    return {
        "sums": sums,
        "handed": sum(handed),
        "counted": counted,
        "volume": exchange.volume,
        "levels": exchange.compressor.fingerprint().hex(),
        "updates": updates,
        "nmse": exchange.nmse,
        "exchanges": len(handed),
    }
