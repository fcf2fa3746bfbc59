"""Transformer decoders that predict the next token, as GPT-2 (Radford et al. 2019) or as Llama (Touvron et al. 2023).

Pre-norm blocks of causal attention and a perceptron. Queries, keys and values have a weight each: what treats weights
as matrices (Muon, low rank) sees the maps that they are. Weights start from N(0, 0.02²), those that add to the residual
stream from N(0, 0.02² / (2 layers)), biases from 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention, silu

from lqray.experiment.options.model import GptOptions

_DEVIATION = 0.02
_ROTARY_BASE = 10_000.0
_MULTIPLE = 64
"""Of the hidden units of a SwiGLU."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, float32 (T, width of a head / 2) each."""


def build(options: GptOptions, shape: tuple[int, ...], classes: int) -> GPT:
    """Inputs int64 (B, T), T at most the context, shape[0]; output (B, T, vocabulary), the logits of the token after
    each. The vocabulary is `classes`, or `options.vocabulary`, which has no meaning beyond the first `classes`.

    Raises ValueError for data that are no tokens, and for a vocabulary that is too small.
    """
    if len(shape) != 1:
        raise ValueError(f"gpt takes tokens, of the shape (context,); found data of the shape {tuple(shape)}")
    if options.vocabulary is not None and options.vocabulary < classes:
        raise ValueError(
            f"model.vocabulary: found {options.vocabulary:,}; allowed: at least {classes:,}, the tokens of the data, "
            "or null"
        )
    return GPT(options, shape[0], options.vocabulary or classes)


class GPT(nn.Module):
    """See `build`."""

    def __init__(self, options: GptOptions, context: int, vocabulary: int) -> None:
        super().__init__()
        self.context, self.dropout = context, options.dropout
        self.rotated = options.width // options.heads if options.style == "llama" else 0
        self.embedding = nn.Embedding(vocabulary, options.width)
        self.positions = None if self.rotated else nn.Embedding(context, options.width)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = _norm(options)
        self.head = nn.Linear(options.width, vocabulary, bias=False)
        self._initialize(options.layers)
        if options.tied:
            self.head.weight = self.embedding.weight

    def _initialize(self, layers: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_DEVIATION)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith("output.weight"):
                nn.init.normal_(weight, std=_DEVIATION / math.sqrt(2 * layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (B, T) to (B, T, vocabulary)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        if len(places) > self.context:
            raise ValueError(f"found {len(places)} tokens; allowed: at most {self.context}, the context")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(places)
        x = dropout(x, self.dropout, self.training)
        rotation = rotary(places, self.rotated) if self.rotated else None
        for block in self.blocks:
            x = block(x, rotation)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """x + attention(norm(x)), then the same with a perceptron."""

    def __init__(self, options: GptOptions) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = _norm(options), _norm(options)
        self.attention = Attention(options)
        self.perceptron = SwiGLU(options) if options.style == "llama" else Perceptron(options)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, T, width) to the same."""
        x = x + self.attention(self.attention_norm(x), rotation)
        out: Tensor = x + self.perceptron(self.perceptron_norm(x))
        return out


class Attention(nn.Module):
    """Causal attention of several heads (Vaswani et al. 2017)."""

    def __init__(self, options: GptOptions) -> None:
        super().__init__()
        self.heads, self.dropout = options.heads, options.dropout
        self.query, self.key, self.value, self.output = (_linear(options, options.width) for _ in range(4))

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, T, width) to the same."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        share = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=share, is_causal=True)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return dropout(out, self.dropout, self.training)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, width of a head)."""
        heads: Tensor = x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        return heads


class Perceptron(nn.Module):
    """A hidden layer of 4 times the width, GELU by its tanh approximation."""

    def __init__(self, options: GptOptions) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.hidden = _linear(options, 4 * options.width)
        self.output = _linear(options, options.width, inputs=4 * options.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return dropout(self.output(gelu(self.hidden(x), approximate="tanh")), self.dropout, self.training)


class SwiGLU(nn.Module):
    """output(silu(gate(x)) * hidden(x)) (Shazeer 2020), with 8/3 times the width in hidden units, rounded up to a
    multiple of 64: about as many weights as a perceptron of 4 times the width."""

    def __init__(self, options: GptOptions) -> None:
        super().__init__()
        self.dropout = options.dropout
        units = -(-8 * options.width // (3 * _MULTIPLE)) * _MULTIPLE
        self.gate, self.hidden = _linear(options, units), _linear(options, units)
        self.output = _linear(options, options.width, inputs=units)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        return dropout(self.output(silu(self.gate(x)) * self.hidden(x)), self.dropout, self.training)


def rotary(places: Tensor, width: int) -> Rotation:
    """Of rotary positions (Su et al. 2021), for heads of an even width, at int64 (T,)."""
    powers = torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width
    angles = places[:, None] * _ROTARY_BASE**-powers
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x, (B, heads, T, width of a head), each pair of coordinates i and i + width / 2 turned by its place's angle."""
    cosines, sines = rotation
    one, two = x.float().chunk(2, dim=-1)
    return torch.cat([one * cosines - two * sines, two * cosines + one * sines], dim=-1).to(x.dtype)


def _biased(options: GptOptions) -> bool:
    return options.style == "gpt2" if options.bias is None else options.bias


def _linear(options: GptOptions, outputs: int, inputs: int | None = None) -> nn.Linear:
    return nn.Linear(inputs or options.width, outputs, bias=_biased(options))


def _norm(options: GptOptions) -> nn.Module:
    if options.style == "llama":
        return nn.RMSNorm(options.width, eps=1e-5)
    return nn.LayerNorm(options.width, bias=_biased(options))
