"""Which part of a network is exchanged after which step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Fragment:
    """A group of neighbouring layers. names: of their parameters that are trained. buffers: of theirs."""

    names: tuple[str, ...]
    buffers: tuple[str, ...]


def fragments_of(network: nn.Module, count: int) -> list[Fragment]:
    """The layers of a network, in order, in so many groups of about equal numbers of parameters. A layer is a module
    that has parameters of its own; one that has none goes with the layer before. Raises ValueError for fewer layers
    than groups."""
    layers: list[tuple[list[str], list[str], int]] = []
    seen: set[int] = set()
    early: list[str] = []
    for prefix, module in network.named_modules():
        names, size = [], 0
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                names.append(name)
                size += parameter.numel()
        buffers = [name for name, _ in module.named_buffers(prefix, recurse=False)]
        if names:
            layers.append((names, early + buffers, size))
            early = []
        elif layers:
            layers[-1][1].extend(buffers)
        else:
            early += buffers
    if len(layers) < count:
        raise ValueError(
            f"exchange.fragments: {count}, of a network that has {len(layers)} layers; allowed: at most so many"
        )
    groups = _balanced([size for _, _, size in layers], count)
    return [
        Fragment(
            tuple(name for place in group for name in layers[place][0]),
            tuple(name for place in group for name in layers[place][1]),
        )
        for group in groups
    ]


def _balanced(sizes: list[int], count: int) -> list[range]:
    """Neighbours in so many groups, none empty: each is closed where it comes nearest to its share of what is left."""
    groups, begin, left = [], 0, sum(sizes)
    for remaining in range(count, 0, -1):
        end, held = begin + 1, sizes[begin]
        while remaining > 1 and len(sizes) - end >= remaining and 2 * held + sizes[end] <= 2 * left / remaining:
            held += sizes[end]
            end += 1
        if remaining == 1:
            end = len(sizes)
        groups.append(range(begin, end))
        begin, left = end, left - held
    return groups


@dataclass(frozen=True)
class Timetable:
    """When each of `fragments` is exchanged: once in `every` steps, in turn, and all of them after the last of
    `iterations` steps."""

    every: int
    fragments: int
    iterations: int

    def due(self, done: int) -> list[int]:
        """The fragments whose exchange starts after so many steps."""
        if done == self.iterations:
            return list(range(self.fragments))
        return [number for number in range(self.fragments) if (done + self._lead(number)) % self.every == 0]

    def exchanges(self, done: int) -> int:
        """How many exchanges have started once so many steps, fewer than all, are done."""
        return sum((done + self._lead(number)) // self.every for number in range(self.fragments))

    def last(self, done: int) -> int:
        """Steps that were done when the last exchange started within so many, fewer than all; 0 before the first."""
        leads = map(self._lead, range(self.fragments))
        return max(0, *((done + lead) // self.every * self.every - lead for lead in leads))

    def _lead(self, number: int) -> int:
        """Steps by which a fragment is ahead of the first."""
        return number * self.every // self.fragments
