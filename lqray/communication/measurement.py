"""What quantization costs a step's gradients, measured on the payloads that are sent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lqray.communication import streams
from lqray.communication.memory import Key
from lqray.communication.moments import DecodedMoments
from lqray.communication.wire.parcel import decoded_parts
from lqray.quantization import Compressor, Payload

_EPSILON = 1e-8
"""Added to the root of a second moment, as Adam's."""
_LEAST = 0.01
"""Of the root mean square of a tensor's roots: no coordinate's counts as less. Else those that no payload has had so
far would be all that counts."""


@dataclass
class Measured:
    """Of one worker and step: sums over its tensors."""

    error: float = 0.0
    energy: float = 0.0
    bias: float = 0.0
    entropy_bits: float = 0.0
    huffman_bits: float = 0.0
    coordinates: int = 0
    _held: list[tuple[Sequence[Key], Tensor, Tensor]] = field(default_factory=list)

    def add(
        self,
        gradient: Tensor,
        payloads: Sequence[Payload],
        compressor: Compressor,
        keys: Sequence[Key] = (),
        scale: Tensor | None = None,
    ) -> None:
        """keys: what the tensor holds, where its error is to be held beside second moments. scale: (n,), what the
        gradient was divided by."""
        exact = gradient.to(torch.float64).reshape(-1)
        energy = float(exact.square().sum())
        decoded = decoded_parts(payloads, compressor).to(torch.float64)
        error = float((decoded - exact).square().sum())
        self.error += error
        self.energy += energy
        self.bias += error if compressor.deterministic else compressor.bias(gradient) ** 2 * energy
        if keys:
            factor = 1.0 if scale is None else scale
            lost, divided = ((each * factor).to(torch.float32) for each in (decoded - exact, exact))
            self._held.append((keys, lost, divided))
        for payload in payloads:
            self.entropy_bits += payload.entropy_bits() * payload.n
            self.huffman_bits += payload.huffman_bits() * payload.n
            self.coordinates += payload.n

    @property
    def nmse(self) -> float:
        return self.error / self.energy if self.energy else 0.0

    def moment_nmse(self, moments: DecodedMoments) -> float:
        """The error against the gradient, each coordinate's square over its second moment; NaN where that is not
        known."""
        error = energy = 0.0
        for keys, lost, exact in self._held:
            streams.used_here(lost, exact)
            v = moments.of(keys, exact.device)
            if v is None:
                return math.nan
            root = v.to(torch.float64).sqrt()
            root = root.clamp(min=_LEAST * float(root.square().mean().sqrt())) + _EPSILON
            error += float((lost / root).square().sum())
            energy += float((exact / root).square().sum())
        return error / energy if energy else 0.0

    @property
    def relative_bias(self) -> float:
        return math.sqrt(self.bias / self.energy) if self.energy else 0.0


class Observations:
    """What the workers of a process look at in a step, beside encoding. kept: what the first of them encoded, where it
    is wanted. measure: whether payloads are decoded and compared. measured: of each worker, what came of it."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.begin_step(False, False, False)

    def begin_step(self, sample: bool, measure: bool, keep: bool) -> None:
        """Forget the last step. sample: compressors observe; measure, keep: see the class."""
        self._sample, self.measure, self._keep = sample, measure, keep
        self.kept: list[Tensor] = []
        self.measured = [Measured() for _ in range(self._workers)]

    def note(
        self,
        worker: int,
        gradient: Tensor,
        payloads: Sequence[Payload],
        compressor: Compressor,
        keys: Sequence[Key] = (),
        scale: Tensor | None = None,
    ) -> None:
        """Of a worker's tensor, what the compressor of its parameters has made of it. keys, scale: see
        `Measured.add`."""
        if self._sample:
            compressor.observe(gradient, worker)
        if self._keep and not worker:
            self.kept.append(gradient.clone())
        if self.measure and payloads:
            self.measured[worker].add(gradient, payloads, compressor, keys, scale)


class Measuring:
    """What a step's payloads were measured to be, of the last step that measured: means over the workers here."""

    _observed: Observations
    _moments: DecodedMoments | None

    @property
    def nmse(self) -> float:
        """||Q(g) - g||^2 / ||g||^2; 0 for zero gradients."""
        return statistics.fmean(one.nmse for one in self._observed.measured)

    @property
    def moment_nmse(self) -> float | None:
        """Sum of (Q(g) - g)^2 / v over that of g^2 / v: what is lost as Adam weighs it. v: the second moment of the
        means so far, this step's among them, once it is over; None where it is not kept (`keep_moments`)."""
        if self._moments is None:
            return None
        return statistics.fmean(one.moment_nmse(self._moments) for one in self._observed.measured)

    @property
    def bias(self) -> float:
        """||E[Q(g)] - g|| / ||g||: 0 for unbiased methods."""
        return statistics.fmean(one.relative_bias for one in self._observed.measured)

    @property
    def entropy_bits(self) -> float:
        """Entropy of the codes, bits per coordinate."""
        return statistics.fmean(one.entropy_bits / max(1, one.coordinates) for one in self._observed.measured)

    @property
    def huffman_bits(self) -> float:
        """Length of the codes in Huffman codes of their own, bits per coordinate."""
        return statistics.fmean(one.huffman_bits / max(1, one.coordinates) for one in self._observed.measured)
