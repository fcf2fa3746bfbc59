"""Second moments of gradients, alike on all ranks to the bit: averages of squares, as Adam divides by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.futures import Future

from lqray.communication import streams
from lqray.communication.bucket import Cut, keys_of
from lqray.communication.memory import Key


class Moments(Protocol):
    """Where second moments come from."""

    def of(self, keys: Sequence[Key], device: torch.device) -> Tensor | None:
        """v of a tensor (n,) that holds these, one after the other, float32, corrected for its beginning at zero; None
        where it is not known."""
        ...

    def keep(self, mean: Tensor, keys: Sequence[Key]) -> None:
        """Learn from a mean (n,) that all ranks have decoded."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold of it."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        ...


class DecodedMoments:
    """By name: v <- decay v + (1 - decay) g^2, g the mean that all ranks decoded, float32. What is not finite counts as
    zero."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._held: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def of(self, keys: Sequence[Key], device: torch.device) -> Tensor | None:
        """See `Moments.of`."""
        if not all(self._steps.get(name, 0) and self._held[name].numel() == size for name, size in keys):
            return None
        streams.used_here(*(self._held[name] for name, _ in keys))
        return torch.cat([self._corrected(name).to(device) for name, _ in keys])

    def keep(self, mean: Tensor, keys: Sequence[Key]) -> None:
        """See `Moments.keep`."""
        flat = mean.detach().to(torch.float32)
        flat = torch.where(flat.isfinite(), flat, 0.0)
        for part, (name, size) in zip(flat.split([size for _, size in keys]), keys, strict=True):
            held = self._held.get(name)
            if held is None or held.numel() != size:
                held, self._steps[name] = torch.zeros_like(part), 0
            streams.used_here(held)
            self._held[name] = self._decay * held + (1 - self._decay) * (part * part)
            self._steps[name] += 1

    def _corrected(self, name: str) -> Tensor:
        return self._held[name] * (1 / (1 - self._decay ** self._steps[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the moments, float32 (n,), and how many steps each has seen."""
        streams.used_here(*self._held.values())
        state = {f"moment/{name}": held.clone() for name, held in sorted(self._held.items())}
        return state | {f"steps/{name}": torch.tensor(steps) for name, steps in sorted(self._steps.items())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Moments.load_state_dict`."""
        moments = {key.partition("/")[2]: value for key, value in state.items() if key.startswith("moment/")}
        self._held = {name: held.to(torch.float32, copy=True) for name, held in moments.items()}
        self._steps = {name: int(state[f"steps/{name}"]) for name in moments}


class OptimizerMoments:
    """Of an optimizer that keeps them as torch's Adam does: `exp_avg_sq` over 1 - beta2^t. All ranks have the same to
    the bit, since their gradients are; checkpoints of the optimizer hold them."""

    def __init__(self) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        self._betas: dict[Tensor, float] = {}
        self._parameters: dict[str, Tensor] = {}

    def follow(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
        """Take the moments of this one. names: of its parameters. Raises ValueError as `check`,
        RuntimeError for no names."""
        if not names:
            raise RuntimeError(
                "exchange.follow comes after exchange.attach(model): before, no parameter is known whose second moment "
                "to take"
            )
        self._optimizer = optimizer
        self._parameters = {name: parameter for parameter, name in names.items()}
        self.check()

    def check(self) -> None:
        """Call between steps. Raises ValueError for an optimizer that has stepped and keeps no second moment of a
        parameter, RuntimeError where there is no optimizer."""
        if self._optimizer is None:
            raise RuntimeError(
                "exchange.precondition: optimizer, and no optimizer is known; call exchange.follow(optimizer) before "
                "the first step, or take precondition: true, for a moment of the exchange's own"
            )
        self._betas = {}
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                state = self._optimizer.state.get(parameter)
                if "betas" not in group or (state and not {"exp_avg_sq", "step"} <= state.keys()):
                    kept = f"which keeps {', '.join(map(str, state)) if state else 'nothing'}"
                    raise ValueError(
                        f"exchange.precondition: optimizer with {type(self._optimizer).__name__}, {kept} of a "
                        "parameter; allowed: an optimizer that keeps exp_avg_sq and step and has betas, such as "
                        "torch.optim.Adam and AdamW; or precondition: true, for a moment of the exchange's own"
                    )
                self._betas[parameter] = float(group["betas"][1])

    def of(self, keys: Sequence[Key], device: torch.device) -> Tensor | None:
        """See `Moments.of`."""
        parts = [self._corrected(name, size) for name, size in keys]
        known = [part.to(device) for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None

    def _corrected(self, name: str, size: int) -> Tensor | None:
        parameter = self._parameters.get(name)
        if parameter is None or self._optimizer is None or parameter.numel() != size:
            return None
        state = self._optimizer.state.get(parameter)
        if not state:
            return None
        streams.used_here(state["exp_avg_sq"])
        laid_out = torch.empty_like(parameter, dtype=torch.float32)  # with its strides, as DDP lays gradients out
        laid_out.copy_(state["exp_avg_sq"])
        steps = torch.as_tensor(state["step"]).to(torch.float64)
        return laid_out.as_strided((size,), (1,)) * (1 / (1 - self._betas[parameter] ** steps)).to(torch.float32)

    def keep(self, mean: Tensor, keys: Sequence[Key]) -> None:
        """The optimizer does."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: it is the optimizer's."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing."""


def kept(moments: DecodedMoments, cut: Cut, done: Future[Tensor]) -> Tensor:
    """The mean (n,) of a DDP bucket, of which the tensors of a cut are learned."""
    mean = done.value()
    for tensor, spans in zip(cut.take(mean), cut.tensors, strict=True):
        moments.keep(tensor, keys_of(spans))
    return mean
