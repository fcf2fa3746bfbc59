"""Which parameters have weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lqray.experiment.options.optimizer import DecayOptions


def parameter_groups(parameters: Iterable[Tensor], options: DecayOptions) -> list[Any]:
    """What a torch.optim.Optimizer with the options' `weight_decay` takes for its parameters: all of them in one group,
    or, with `decayed: matrices`, those of two or more dimensions, and then those of fewer, without weight decay. No
    group is empty."""
    chosen = list(parameters)
    if options.decayed == "all":
        return chosen
    matrices = {"params": [one for one in chosen if one.ndim >= 2]}
    others = {"params": [one for one in chosen if one.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, others) if group["params"]]
