"""Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what quantizing lost is added to the next gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lqray.communication.bucket import Span


class Residuals:
    """A residual for every parameter of every worker of this process, zero at first."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], Tensor] = {}

    def added_to(self, gradient: Tensor, spans: Sequence[Span], worker: int) -> Tensor:
        """The gradient (n,) of these spans' parameters with their residuals added; the gradient stays as it is."""
        corrected = gradient.clone()
        for part, span in zip(corrected.split([s.end - s.begin for s in spans]), spans, strict=True):
            held = self._held.get((worker, span.name))
            if held is not None:
                part += held.to(part)
        return corrected

    def keep(self, corrected: Tensor, decoded: Tensor, spans: Sequence[Span], worker: int) -> None:
        """Remember corrected - decoded, float32. What is not finite is forgotten: it would stay for ever."""
        lost = corrected.to(torch.float32) - decoded.to(torch.float32)
        lost = torch.where(lost.isfinite(), lost, 0.0)
        for part, span in zip(lost.split([s.end - s.begin for s in spans]), spans, strict=True):
            self._held[worker, span.name] = part

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the residuals: float32 (n,), as DDP lays their parameter out."""
        return {f"{worker}/{name}": held.clone() for (worker, name), held in sorted(self._held.items())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._held = {}
        for key, held in state.items():
            worker, _, name = key.partition("/")
            self._held[int(worker), name] = held.clone()
