"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what quantizing lost is added to the next gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lqray.communication import streams
from lqray.communication.bucket import Span
from lqray.experiment.feedback import REMEDY, described, why_no_contraction, widest_gap
from lqray.quantization import Payload, Quantizer

_MOST_GROWTH = 32.0  # of the energy that is lost, over steps in a row


class NoContractionError(ValueError):
    """Quantizing loses more than there was, so that what is fed back would grow without bound."""


class Residuals:
    """A residual for every parameter of every worker of this process, zero at first, float32 whatever the gradients'
    type: smaller ones would drop what is added up.

    mode: "scaled": decoded values are scaled by 1 / (1 + omega), omega the relative error of their bucket, which makes
    every unbiased method a contraction of |x - Q|^2 <= omega / (1 + omega) |x|^2 on average. True: as they are; raises
    NoContractionError where that can never contract, and `check` does where it turns out not to.
    """

    def __init__(self, quantizer: Quantizer, mode: Literal[True, "scaled"]) -> None:
        self._quantizer = quantizer
        self._scaled = mode == "scaled"
        self._held: dict[tuple[int, str], Tensor] = {}
        self._step: list[Tensor] = []
        self._growth = 1.0
        options, method = quantizer.options, quantizer.method
        if self._scaled:
            return
        if why := why_no_contraction(options, method.norm, method.initial_levels(options).tolist()):
            raise NoContractionError(
                f"exchange.error_feedback: true with {described(options)}, which is no contraction: {why}. What is fed "
                f"back would grow without bound. Take {REMEDY}"
            )

    def added_to(self, gradient: Tensor, spans: Sequence[Span], worker: int) -> Tensor:
        """The gradient (n,) of these spans' parameters with their residuals added, at least float32; the gradient stays
        as it is."""
        corrected = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        for part, span in zip(corrected.split([s.end - s.begin for s in spans]), spans, strict=True):
            held = self._held.get((worker, span.name))
            if held is not None:
                streams.used_here(held)
                part += held.to(part)
        return corrected

    def keep(self, corrected: Tensor, payload: Payload, spans: Sequence[Span], worker: int) -> Payload:
        """Remember what a payload of the corrected gradient (n,) lost, float32, and return the payload to send. What is
        not finite is forgotten: it would stay for ever."""
        decoded = self._quantizer.decode(payload)
        if self._scaled:
            payload = _scaled(payload, corrected, decoded)
            decoded = self._quantizer.decode(payload)
        lost = (corrected - decoded).to(torch.float32)
        lost = torch.where(lost.isfinite(), lost, 0.0)
        for part, span in zip(lost.split([s.end - s.begin for s in spans]), spans, strict=True):
            self._held[worker, span.name] = part
        if not self._scaled:
            energies = [each.to(torch.float64).square().sum() for each in (lost, corrected)]
            self._step.append(torch.stack(energies))
        return payload

    def check(self) -> None:
        """Call between steps. Raises NoContractionError where more is lost than there was, from step to step: at once
        where it is much, after some steps where it is little more. A gradient that is unusual for once raises nothing.
        """
        if not self._step:
            return
        lost, energy = torch.stack(self._step).sum(dim=0).tolist()
        self._step.clear()
        if not math.isfinite(lost + energy) or not energy:
            return
        omega = lost / energy
        self._growth = max(1.0, self._growth * omega)
        if self._growth >= _MOST_GROWTH and not self._is_bounded():
            raise NoContractionError(
                f"exchange.error_feedback: true with {described(self._quantizer.options)}: quantizing lost {omega:.3g} "
                "times the energy of what was quantized (omega), and in this way from step to step; allowed: below 1, "
                f"else what is fed back grows without bound. Take {REMEDY}"
            )

    def _is_bounded(self) -> bool:
        """Whether the largest magnitude contracts, whatever the energy does; a rotation does not keep it."""
        coding = self._quantizer.coding
        return coding.norm == "linf" and not coding.rotate and widest_gap(self._quantizer.levels.tolist()) < 1

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the residuals: float32 (n,), as DDP lays their parameter out."""
        streams.used_here(*self._held.values())
        return {f"{worker}/{name}": held.clone() for (worker, name), held in sorted(self._held.items())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._held, self._step = {}, []
        self._growth = 1.0
        for key, held in state.items():
            worker, _, name = key.partition("/")
            self._held[int(worker), name] = held.to(torch.float32, copy=True)


def _scaled(payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
    """The payload with each bucket's norm times <x, Q> / <Q, Q>, in [0, 1]: for an unbiased Q that is 1 / (1 + omega)
    with the omega of this very rounding, and no other factor brings Q nearer to x. An unquantized tail stays."""
    coordinates, size = payload.n - payload.tail, payload.bucket_size
    x, q = (
        torch.nn.functional.pad(each[:coordinates].to(torch.float64), (0, -coordinates % size)).view(-1, size)
        for each in (corrected, decoded)
    )
    factors = (x * q).sum(dim=1) / q.square().sum(dim=1)
    factors = torch.where(factors.isfinite(), factors.clamp(0.0, 1.0), 1.0).to(torch.float32)
    buffer = payload.buffer.clone()
    buffer[: payload.norm_bytes] = (payload.norms * factors).view(torch.uint8)
    return replace(payload, buffer=buffer)
