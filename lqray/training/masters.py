"""Optimizers of networks in bfloat16: they step along float32 copies of the parameters, the masters, since most steps
are smaller than the distance from one bfloat16 number to the next (Micikevicius et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lqray.experiment.schema import Trial
from lqray.training.closure import loss_of
from lqray.training.optimizers import build_optimizer


class Masters(torch.optim.Optimizer):
    """An optimizer over a network's parameters, of which those in bfloat16 follow a float32 master each: `inner` steps
    along the masters, with the gradients in float32, and what comes of it is rounded to the nearest.

    Its groups and states are those of `inner`, and name the network's parameters where `inner` has their masters: a
    learning rate set here holds there.
    """

    def __init__(
        self,
        names: Mapping[nn.Parameter, str],
        masters: Mapping[nn.Parameter, nn.Parameter],
        inner: torch.optim.Optimizer,
    ) -> None:
        self._names, self._masters, self._inner = names, dict(masters), inner
        self._parameters: dict[Tensor, nn.Parameter] = {master: parameter for parameter, master in masters.items()}
        groups = [
            {**group, "params": [self._parameters.get(one, one) for one in group["params"]]}
            for group in inner.param_groups
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As of torch.optim.Optimizer."""
        loss = loss_of(closure)
        for parameter, master in self._masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.to(torch.float32)
        self._tell()
        self._inner.step()
        self._learn()
        for one in self._parameters:
            one.grad = None
        self.write()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """{"inner": that of the optimizer, "masters": parameters' names to float32 tensors of their shapes}."""
        self._tell()
        masters = {self._names[parameter]: master.detach() for parameter, master in self._masters.items()}
        return {"inner": self._inner.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a network with the same names and shapes. Its parameters become the masters, rounded."""
        self._inner.load_state_dict(state_dict["inner"])
        for parameter, master in self._masters.items():
            master.copy_(state_dict["masters"][self._names[parameter]])
        self._learn()
        self.write()

    def master(self, parameter: nn.Parameter) -> nn.Parameter:
        """What is stepped in a parameter's place: its master, or itself."""
        return self._masters.get(parameter, parameter)

    def _tell(self) -> None:
        """Give the inner groups what was set here, such as a learning rate."""
        for theirs, ours in zip(self._inner.param_groups, self.param_groups, strict=True):
            theirs.update({key: value for key, value in ours.items() if key != "params"})

    def _learn(self) -> None:
        """Take over what the inner optimizer holds of its groups and of each parameter."""
        for theirs, ours in zip(self._inner.param_groups, self.param_groups, strict=True):
            ours.update({key: value for key, value in theirs.items() if key != "params"})
        self.state.clear()
        self.state.update({self._parameters.get(one, one): held for one, held in self._inner.state.items()})

    @torch.no_grad()
    def write(self) -> None:
        """Round the masters into their parameters, as after masters were changed."""
        torch._foreach_copy_(list(self._masters), list(self._masters.values()))


def build(trial: Trial, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trial names, over its network; with `model.dtype: bf16` over masters, which start at the
    parameters in bfloat16. Raises what `build_optimizer` raises."""
    if trial.model.dtype == "float32":
        return build_optimizer(trial.optimizer, network)
    masters = {
        one: nn.Parameter(one.detach().to(torch.float32), requires_grad=one.requires_grad)
        for one in network.parameters()
        if one.dtype == torch.bfloat16
    }
    with _standing_in(network, masters):
        inner = build_optimizer(trial.optimizer, network)
    return Masters({one: name for name, one in network.named_parameters()}, masters, inner)


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> nn.Parameter:
    """What an optimizer that `build` made steps for a parameter: its master, or itself."""
    return optimizer.master(parameter) if isinstance(optimizer, Masters) else parameter


def write(optimizer: torch.optim.Optimizer) -> None:
    """Call after what is `stepped` was changed otherwise."""
    if isinstance(optimizer, Masters):
        optimizer.write()


@contextmanager
def _standing_in(network: nn.Module, masters: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """The network with masters in the places of their parameters: so an optimizer sees their names and layers."""
    places = [
        (module, name, parameter)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if parameter in masters
    ]
    try:
        for module, name, parameter in places:
            setattr(module, name, masters[parameter])
        yield
    finally:
        for module, name, parameter in places:
            setattr(module, name, parameter)
