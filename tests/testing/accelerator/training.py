"""What torch's DDP does with a communication hook, over buckets that are filled one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lqray.communication import GradientExchange
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer

STEPS, BUCKETS = 3, ((2, 3), (0, 1))


@dataclass(frozen=True)
class Bucket:
    """As torch's GradBucket."""

    number: int
    last: bool
    flat: Tensor
    own: Sequence[nn.Parameter]

    def index(self) -> int:
        return self.number

    def is_last(self) -> bool:
        return self.last

    def buffer(self) -> Tensor:
        return self.flat

    def parameters(self) -> list[nn.Parameter]:
        return list(self.own)

    def gradients(self) -> list[Tensor]:
        parts = self.flat.split([parameter.numel() for parameter in self.own])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.own, strict=True)]


class DataParallel:
    """A small network on a device. Its gradients are made up, and a function of its weights."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.module = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 9))
        for part in self.module:
            for name, parameter in list(part.named_parameters()):
                setattr(part, name, nn.Parameter(parameter.detach().to(device)))
        every = list(self.module.parameters())
        self._own = [[every[index] for index in bucket] for bucket in BUCKETS]
        sizes = [sum(parameter.numel() for parameter in own) for own in self._own]
        self._buffers = [torch.zeros(size, device=device) for size in sizes]
        self.weights = [torch.zeros(size, device=device) for size in sizes]
        self._noise = [[torch.randn(size).to(device) for size in sizes] for _ in range(2 * STEPS)]
        self._hook: Callable[[Bucket], Any] | None = None
        self.early: list[bool] = []
        """Of all but the last bucket of each step, whether its exchange had been queued when the hook returned."""

    def register_comm_hook(self, state: Any, hook: Callable[..., Any]) -> None:
        self._hook = lambda bucket: hook(state, bucket)

    def set_gradients(self, step: int) -> None:
        """As a backward pass within `no_sync` leaves them."""
        for own, noise in zip(self._own, self._noise[STEPS + step], strict=True):
            for parameter, part in zip(own, noise.split([each.numel() for each in own]), strict=True):
                parameter.grad = (part * 2).view(parameter.shape)

    def let_go(self) -> None:
        """What the host needs no more, and a cycle of references holds, is handed back at once."""
        if self.device.type != "cpu":
            gc.collect()

    def backward(self, step: int) -> None:
        """The backward pass, the exchange beside it, and the optimizer's step."""
        assert self._hook
        waited: list[Any] = []
        for number, flat in enumerate(self._buffers):
            self.early += [future.done() for future in waited]
            torch.add(self._noise[step][number], self.weights[number], out=flat)
            waited.append(self._hook(Bucket(number, number + 1 == len(self._buffers), flat, self._own[number])))
            self.let_go()
        for flat, weights, future in zip(self._buffers, self.weights, waited, strict=True):
            flat.copy_(future.wait())
            weights.sub_(flat, alpha=0.1)


def exchange_of(group: Any, workers: int = 1, method: str = "qsgd_inf", **options: Any) -> GradientExchange:
    """With options of `exchange`; and of the method bits and levels."""
    chosen = {key: options.pop(key) for key in ("bits", "levels") if key in options}
    adaptive = {"update_at": (0, 1)} if method == "alq" else {}
    quantizer = Quantizer.create(method, bucket_size=32, **adaptive, **chosen)
    return GradientExchange(quantizer, ExchangeOptions(**options), group, list(range(workers)))


def train(group: Any, device: torch.device, workers: int = 1, resume: bool = False, **options: Any) -> Tensor:
    """The weights after `STEPS` steps, on the host. resume: every step begins with the state of the one before."""
    exchange, model = exchange_of(group, workers, **options), DataParallel(device)
    try:
        exchange.attach(model)  # type: ignore[arg-type]
        for step in range(STEPS):
            if resume:
                exchange.load_state_dict(exchange.state_dict())
            exchange.begin_step(step)
            for _ in range(workers - 1):
                model.set_gradients(step)
                exchange.set_aside()
            model.backward(step)
            exchange.update_levels()
            model.let_go()
        exchange.finish()
        return torch.cat([weights.cpu() for weights in model.weights])
    finally:
        exchange.close()
