"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what compressing lost is added to the next gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lqray.communication.bucket import Span
from lqray.communication.memory import ErrorMemory, Key
from lqray.communication.wire.parcel import decoded_parts
from lqray.experiment.feedback import REMEDY, described
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor, Payload

_MOST_GROWTH = 32.0  # of the energy that is lost, over steps in a row


class NoContractionError(ValueError):
    """Compressing loses more than there was, so that what is fed back would grow without bound."""


class Residuals:
    """A residual for every parameter of every worker of this process; see `ErrorMemory`.

    `error_feedback: scaled`: decoded values are scaled by 1 / (1 + omega), omega the relative error of their bucket,
    which makes every unbiased method a contraction of |x - Q|^2 <= omega / (1 + omega) |x|^2 on average. true: as they
    are; raises NoContractionError where that can never contract, and `check` does where it turns out not to.
    """

    def __init__(self, compressor: Compressor, options: ExchangeOptions) -> None:
        self._compressor = compressor
        self._described = described(compressor.options, compressor.name)
        self._scaled = options.error_feedback == "scaled"
        self._memory = ErrorMemory.of(options)
        self._step: list[Tensor] = []
        self._growth = 1.0
        if self._scaled:
            if not compressor.can_be_scaled:
                raise NoContractionError(
                    f"exchange.error_feedback: scaled with {self._described}, whose payloads cannot be; allowed: "
                    "error_feedback: true or false, or a compressor that has `rescaled`"
                )
            return
        if why := compressor.why_no_contraction():
            raise NoContractionError(
                f"exchange.error_feedback: true with {self._described}, which is no contraction: {why}. "
                f"What is fed back would grow without bound. Take {REMEDY}"
            )

    def begin_step(self, iteration: int) -> None:
        """Call between steps. Raises as `check`."""
        self.check()
        self._memory.begin_step(iteration)

    def added_to(self, gradient: Tensor, spans: Sequence[Span], worker: int) -> Tensor:
        """The gradient (n,) of these spans' parameters with their residuals added, at least float32; the gradient stays
        as it is."""
        return self._memory.added_to(gradient, _keys(spans, worker))

    def keep(
        self, corrected: Tensor, payloads: Sequence[Payload], spans: Sequence[Span], worker: int
    ) -> Sequence[Payload]:
        """Remember what payloads of the parts of the corrected gradient (n,) lost, and return those to send."""
        decoded = decoded_parts(payloads, self._compressor)
        if self._scaled:
            sizes = [payload.n for payload in payloads]
            parts = zip(payloads, corrected.split(sizes), decoded.split(sizes), strict=True)
            payloads = [self._compressor.rescaled(*part) for part in parts]
            decoded = decoded_parts(payloads, self._compressor)
        lost = self._memory.keep(corrected, decoded, _keys(spans, worker))
        if not self._scaled:
            energies = [each.to(torch.float64).square().sum() for each in (lost, corrected)]
            self._step.append(torch.stack(energies))
        return payloads

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
        if self._growth >= _MOST_GROWTH and not self._compressor.bounded:
            raise NoContractionError(
                f"exchange.error_feedback: true with {self._described}: compressing lost "
                f"{omega:.3g} times the energy of what was compressed (omega), and in this way from step to step; "
                "allowed: below 1, "
                f"else what is fed back grows without bound. Take {REMEDY}"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the residuals: float32 (n,), as DDP lays their parameter out."""
        return self._memory.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._memory.load_state_dict(state)
        self._step.clear()
        self._growth = 1.0


def _keys(spans: Sequence[Span], worker: int) -> list[Key]:
    return [(f"{worker}/{span.name}", span.size) for span in spans]
