"""A small byte transformer on Python's standard library, and how it is trained: AdamW, four workers in one process."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

WORKERS, BATCH, CONTEXT, WIDTH, HEADS, LAYERS = 4, 8, 64, 64, 4, 3
HELD_OUT = 60_000
RATE, BETA2 = 3e-3, 0.95


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


class Training:
    """The same weights and batches for every method of a seed. AdamW's rate warms up over 50 steps and falls along a
    cosine to a tenth."""

    def __init__(self, seed: int, iterations: int, beta2: float = BETA2) -> None:
        torch.set_num_threads(1)
        data = corpus()
        self._training, self._held_out = data[:-HELD_OUT], data[-HELD_OUT:]
        torch.manual_seed(seed)
        self.model = Transformer()
        self.parameters = list(self.model.parameters())
        self.shapes = [tuple(one.shape) for one in self.parameters]
        self.names = [name for name, _ in self.model.named_parameters()]
        self.sizes = [one.numel() for one in self.parameters]
        self.n = sum(self.sizes)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.01, betas=(0.9, beta2))
        self._batches = torch.Generator().manual_seed(1000 + seed)
        self._iterations, self._done = iterations, 0

    def gradients(self) -> Tensor:
        """Of each worker's next minibatch, (WORKERS, n)."""
        rows = []
        for _ in range(WORKERS):
            first = torch.randint(0, len(self._training) - CONTEXT - 1, (BATCH,), generator=self._batches)
            loss = loss_of(self.model, self._training[first[:, None] + torch.arange(CONTEXT + 1)])
            parts = torch.autograd.grad(loss, self.parameters)
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
        return torch.stack(rows)

    def step(self, mean: Tensor) -> None:
        """The optimizer's, with a gradient (n,)."""
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * self._done / self._iterations))
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1, (self._done + 1) / 50) * cosine
        for parameter, part in zip(self.parameters, mean.split(self.sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        self.optimizer.step()
        self._done += 1

    def held_out_loss(self) -> float:
        """Of the last 60,000 bytes."""
        with torch.no_grad():
            rows = self._held_out[: (HELD_OUT - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
            return float(torch.stack([loss_of(self.model, part) for part in rows.split(64)]).mean())
