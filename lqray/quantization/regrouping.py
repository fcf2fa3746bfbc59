"""What N processes each keep, handed out anew to M processes that share the same senders.

Senders are what encodes: workers, or hosts of several. Each has a number among all of them, and what is kept of one
goes with it; what is kept of a process must be equal in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class RegroupingError(ValueError):
    """What some processes have kept cannot go on in another number of them with the same bits."""


@dataclass(frozen=True)
class Regrouping:
    """held: the senders of each process of before, in the order of ranks. here: those of this process now."""

    held: tuple[range, ...]
    here: range

    def first(self, states: Sequence[T]) -> T:
        """That of the process which had the first sender of this one."""
        return states[next(rank for rank, senders in enumerate(self.held) if self.here[0] in senders)]

    def of_senders(self, states: Sequence[Mapping[int, T]]) -> dict[int, T]:
        """What each process had of its senders, by their numbers in it from 0, to what this one has of its own. Of a
        sender that several processes stand for, they have the same."""
        found: dict[int, T] = {}
        for senders, state in zip(self.held, states, strict=True):
            for number, value in state.items():
                if senders[number] in self.here:
                    found.setdefault(senders[number] - self.here[0], value)
        return found

    def numbered(self, states: Sequence[Mapping[str, T]], before: str = "") -> dict[str, T]:
        """As `of_senders`, of keys that begin with `before`, the number and, if more comes, a stroke: 3/NAME."""
        apart = [_by_number(state, before) for state in states]
        return {
            f"{before}{number}{rest}": value
            for number, values in sorted(self.of_senders(apart).items())
            for rest, value in values.items()
        }


def alike(states: Sequence[T], what: str) -> T:
    """What all processes have equal, to the bit. what: its name. Raises RegroupingError where it differs."""
    for rank, state in enumerate(states):
        if not same(states[0], state):
            raise RegroupingError(
                f"{what} of process {rank} differs from that of process 0, and does not say whose it is"
            )
    return states[0]


def same(one: Any, other: Any) -> bool:
    """Equality to the bit of tensors and plain data, nested."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        )
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (one != one and other != other))


def _by_number(state: Mapping[str, T], before: str) -> dict[int, dict[str, T]]:
    found: dict[int, dict[str, T]] = {}
    for key, value in state.items():
        number, stroke, rest = key.removeprefix(before).partition("/")
        found.setdefault(int(number), {})[stroke + rest] = value
    return found
