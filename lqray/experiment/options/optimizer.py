"""Options of optimizers, one class per name."""

from __future__ import annotations

from pydantic import Field, model_validator

from lqray.experiment.options.section import LARGEST, SMALLEST, Variant


class OptimizerOptions(Variant):
    """An optimizer of torch.optim."""

    name: str
    lr: float = Field(ge=SMALLEST, le=LARGEST)
    """Learning rate at the start."""
    weight_decay: float = Field(default=0.0, ge=0, le=LARGEST)
    """L2 penalty, added to the averaged gradient."""


class SgdOptions(OptimizerOptions):
    """torch.optim.SGD."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdOptions:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


class AdamOptions(OptimizerOptions):
    """torch.optim.Adam (Kingma and Ba 2015)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, ge=SMALLEST, le=LARGEST)


class AdamWOptions(AdamOptions):
    """torch.optim.AdamW: weight decay apart from the gradient (Loshchilov and Hutter 2019)."""


OPTIMIZER: dict[str, type[OptimizerOptions]] = {"sgd": SgdOptions, "adam": AdamOptions, "adamw": AdamWOptions}
