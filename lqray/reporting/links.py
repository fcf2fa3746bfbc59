"""Seconds of a training step over links that nothing was run on, modelled of what was measured elsewhere.

The model is the usual one of latency and bandwidth, alpha + 8 n / beta for a message of n bytes (Hockney 1994; Thakur,
Rabenseifner and Gropp 2005), among W hosts of one worker each, all links alike, both ways at once, nothing in between
that is shared. For M collectives a step, seconds on the wire are

    all_gather      M (W - 1) alpha   + 8 (W - 1) p / beta              p: bytes of a worker's payload
    scatter_reduce  2 M (W - 1) alpha + 8 (W - 1) / W (p + m) / beta    m: bytes of the encoded mean of everything
    all_reduce      2 M (W - 1) alpha + 16 (W - 1) / W p / beta         p: bytes of the buffer
    hierarchical    as all_gather, among W hosts of any number of workers, of which each sends one payload; what is
                    exchanged inside a host costs nothing

all_reduce is that of a ring, which moves the fewest bytes that there can be (Patarasuk and Yuan 2009). A step takes

    compute + encode + decode (W of an all_gather's payloads, two otherwise) + other + (1 - overlap) wire
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

REDUCTIONS = ("all_gather", "scatter_reduce", "all_reduce")
_RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LINK = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)(?::(\d+(?:\.\d+)?)(us|ms|s))?")
_MOST_WORKERS = 1_000_000


class LinkError(ValueError):
    """A link, or a number of workers, that cannot be read."""


@dataclass(frozen=True)
class Link:
    """name: as it was given. bandwidth: beta, bits a second, each way. latency: alpha, seconds a message."""

    name: str
    bandwidth: float
    latency: float = 0.0


@dataclass(frozen=True)
class Step:
    """What a training step of one worker is made of.

    compute: seconds without any exchange. payload: bytes that it hands to the collective, mean over steps. mean: bytes
    of everything's encoded mean, of scatter_reduce. encode, decode: seconds for one payload. messages: collectives,
    mean over steps. overlap: share of the seconds on the wire that computing hides, 0 to 1. other: seconds besides, of
    an exchange that takes no time on a wire: launching, checking, copying, waiting for one another.
    """

    reduction: Literal["all_gather", "scatter_reduce", "all_reduce", "hierarchical"]
    compute: float
    payload: float
    mean: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    messages: float = 1.0
    overlap: float = 0.0
    other: float = 0.0

    @property
    def gathers(self) -> bool:
        """Whether each host receives the payload of every other, and decodes them all."""
        return self.reduction in ("all_gather", "hierarchical")

    def local_seconds(self, workers: int) -> float:
        """Seconds that no link has a part in: computing, encoding, decoding, and others. By oneself only the first."""
        if workers == 1:
            return self.compute
        return self.compute + self.encode + (workers if self.gathers else 2) * self.decode + self.other

    def bits_sent(self, workers: int) -> float:
        """That each worker sends, and receives."""
        if self.gathers:
            return 8 * (workers - 1) * self.payload
        both = self.payload + (self.mean if self.reduction == "scatter_reduce" else self.payload)
        return 8 * (workers - 1) / workers * both

    def rounds(self, workers: int) -> float:
        """Messages that follow one another: each waits for a latency."""
        return self.messages * (workers - 1) * (1 if self.gathers else 2)

    def wire_seconds(self, workers: int, link: Link) -> float:
        """Seconds on the wire, hidden or not."""
        return self.rounds(workers) * link.latency + self.bits_sent(workers) / link.bandwidth

    def seconds(self, workers: int, link: Link) -> float:
        """Of a step."""
        return self.local_seconds(workers) + (1 - self.overlap) * self.wire_seconds(workers, link)


def sixteen_bits(coordinates: float, compute: float, messages: float, overlap: float = 0.0) -> Step:
    """DDP with bf16's hook on a gradient of so many coordinates: a ring's all-reduce of 2 bytes each, whose casts cost
    nothing. See `Step`."""
    return Step("all_reduce", compute, 2 * coordinates, messages=messages, overlap=overlap)


def break_even(step: Step, plain: Step, workers: int, latency: float = 0.0) -> float:
    """Bits a second of the links below which a step is faster than a plain one: infinity where it is on all links, 0
    where it is on none. Of one that sends more and computes less, which is faster above some bandwidth, 0 as well.

    With a + b / beta seconds of the one and c + d / beta of the other it is (d - b) / (a - c).
    """
    own, other = (
        (
            one.local_seconds(workers) + (1 - one.overlap) * one.rounds(workers) * latency,
            (1 - one.overlap) * one.bits_sent(workers),
        )
        for one in (step, plain)
    )
    longer, fewer = own[0] - other[0], other[1] - own[1]
    if fewer < 0 or (fewer == 0 and longer >= 0):
        return 0.0
    return fewer / longer if longer > 0 else math.inf


def parsed_link(text: str) -> Link:
    """`100mbit`, `2.5gbit`, or with a latency `10mbit:20ms`. Raises LinkError."""
    found = _LINK.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise LinkError(
            f"found link {text!r}; allowed: a rate above 0 in kbit, mbit or gbit a second, such as 100mbit, and after "
            "a colon a latency in us, ms or s, such as 10mbit:20ms"
        )
    latency = float(found[3]) * _TIMES[found[4]] if found[3] else 0.0
    return Link(text.strip(), float(found[1]) * _RATES[found[2]], latency)


def parsed_links(text: str) -> tuple[Link, ...]:
    """Several with commas, each once. Raises LinkError."""
    return tuple(dict.fromkeys(map(parsed_link, text.split(","))))


def parsed_workers(text: str) -> tuple[int, ...]:
    """`2,8,64`, each once. Raises LinkError."""
    words = [one.strip() for one in text.split(",")]
    if any(not re.fullmatch(r"[0-9]{1,7}", one) or not 2 <= int(one) <= _MOST_WORKERS for one in words):
        raise LinkError(f"found workers {text!r}; allowed: numbers from 2 to {_MOST_WORKERS}, such as 2,8,64")
    return tuple(dict.fromkeys(map(int, words)))


def shown_bandwidth(bits: float) -> str:
    """`22 Gbit/s`; `any` of infinity, `none` of 0."""
    if not math.isfinite(bits) or not bits:
        return "any" if bits else "none"
    for size, name in ((1e9, "Gbit"), (1e6, "Mbit"), (1e3, "kbit")):
        if bits >= size:
            return f"{bits / size:.3g} {name}/s"
    return f"{bits:.3g} bit/s"


def split_payload(
    reduction: str, workers: int, payload: float, sent: float, mean: Callable[[int, int], float]
) -> tuple[int, float, float] | None:
    """(workers of a process, bytes of one worker's payload, bytes of everything's encoded mean) from what a process
    counted: bytes handed over and sent by the processes that share `workers`. mean: of (workers of a process,
    processes), bytes expected of an encoded mean. None for a reduction that is not of this model, where nothing is
    handed over, and for more than a million workers.

    Of P processes with k workers each, an all_gather hands over k p and sends (P - 1) k p, an all_reduce p and
    2 (P - 1) / P p, a scatter_reduce k p + m / P and (P - 1) / P (k p + m): P is the divisor of the workers that comes
    nearest.
    """
    if reduction not in REDUCTIONS or payload <= 0 or not 1 <= workers <= _MOST_WORKERS:
        return None

    def error(processes: int) -> float:
        others = processes - 1
        if reduction == "all_gather":
            return abs(sent - others * payload)
        if reduction == "all_reduce":
            return abs(sent - 2 * others / processes * payload)
        second = mean(workers // processes, processes)
        own = max(payload - second / processes, 0.0)
        return abs(sent - others / processes * (own + second))

    processes = min(_divisors(workers), key=error)
    share = workers // processes
    if reduction == "all_reduce":
        return share, payload, 0.0
    if reduction == "all_gather":
        return share, payload / share, 0.0
    second = mean(share, processes)
    if processes > 1:  # k p + m is known by itself
        second = max(0.0, (sent * processes / (processes - 1) - payload) / (1 - 1 / processes))
    return share, max(0.0, payload - second / processes) / share, second


@dataclass(frozen=True)
class OnHosts:
    """How a run with `reduction: hierarchical` was placed. share: workers of a process. sends: hosts that a process
    sends for, one where it is a host or a part of one. hosts: all of them. payload: bytes of one host's payload."""

    share: int
    sends: int
    hosts: int
    payload: float


def split_hosts(workers: int, hosts: int | None, handed: float, between: float, within: float) -> OnHosts | None:
    """From what a process counted: bytes handed over, and sent between and within hosts. hosts: as configured; None
    where they were found by placement, then a process is a host or a part of one. None where nothing is handed over,
    for hosts that do not divide the workers, and for more than a million workers.

    A host of L processes sends (H - 1) / L payloads a process, and something inside; a process of s hosts, of which it
    hands over s payloads, sends (H / s - 1) times these. What comes nearest is taken.
    """
    if handed <= 0 or not 1 <= workers <= _MOST_WORKERS or (hosts is not None and (hosts < 1 or workers % hosts)):
        return None
    found: list[tuple[float, OnHosts]] = []
    for count in [hosts] if hosts else _divisors(workers):
        beside = workers // count
        for parts in _divisors(beside):
            if (parts > 1) == (within > 0):
                expected = (count - 1) / parts * handed
                found.append((abs(between - expected), OnHosts(beside // parts, 1, count, handed)))
        for sends in _divisors(count) if hosts and not within else ():
            expected = (count // sends - 1) * handed
            found.append((abs(between - expected), OnHosts(beside * sends, sends, count, handed / sends)))
    return min(found, key=lambda each: each[0])[1] if found else None


def _divisors(number: int) -> Sequence[int]:
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})
