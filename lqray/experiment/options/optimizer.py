"""Options of optimizers, one class per name."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.section import LARGEST, SMALLEST, Variant


class OptimizerOptions(Variant):
    """An optimizer: a module of training/optimizers."""

    name: str
    """Which optimizer."""
    lr: float = Field(ge=SMALLEST, le=LARGEST)
    """Learning rate at the start."""
    clip_norm: float | None = Field(default=None, ge=SMALLEST, le=LARGEST)
    """The averaged gradient of all parameters together is scaled down to this l2 norm where it is longer; null: as it
    is."""


class DecayOptions(OptimizerOptions):
    """An optimizer that has weight decay, and none by default."""

    weight_decay: float = Field(default=0.0, ge=0, le=LARGEST)
    """A penalty on squared weights: added to the averaged gradient by sgd and adam, apart from it by the others."""
    decayed: Literal["all", "matrices"] = "all"
    """What weight_decay is of: all parameters, or those of two or more dimensions alone, and so neither biases nor the
    weights of norms."""


class SgdOptions(DecayOptions):
    """torch.optim.SGD."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Weight of the past in the sum of gradients that is stepped along; 0: none, the gradient alone."""
    nesterov: bool = False
    """Step along that sum as it will be after the next gradient like this one (Nesterov); wants a momentum above 0."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdOptions:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


class AdamOptions(DecayOptions):
    """torch.optim.Adam (Kingma and Ba 2015)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the past in the average of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Weight of the past in the average of their squares."""
    eps: float = Field(default=1e-8, ge=SMALLEST, le=LARGEST)
    """Added to the root of that average before a step is divided by it."""


class AdamWOptions(AdamOptions):
    """torch.optim.AdamW: weight decay apart from the gradient (Loshchilov and Hutter 2019)."""


class LionOptions(DecayOptions):
    """Lion: the sign of an average of gradients (Chen et al. 2023); its rates are some 3 to 10 times below AdamW's, its
    weight decay as much above."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of the average that is stepped along."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Of the average that is kept."""


class MuonOptions(DecayOptions):
    """Muon for weights of two dimensions (Jordan et al. 2024), AdamW for all others and for embeddings."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Weight of the past in the average of gradients that is made orthogonal."""
    nesterov: bool = True
    """Make orthogonal what that average will be after the next gradient like this one (Nesterov)."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """How far a matrix moves at a rate: match_rms_adamw, as far as under AdamW, so that one rate serves both (Liu et
    al. 2025); original: max(1, rows / columns) ** 0.5."""
    adamw_lr: float | None = Field(default=None, ge=SMALLEST, le=LARGEST)
    """Learning rate of AdamW at the start; null: lr. The schedule lowers both alike."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW: weight of the past in the average of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Of AdamW: weight of the past in the average of their squares."""
    eps: float = Field(default=1e-8, ge=SMALLEST, le=LARGEST)
    """Of AdamW: added to the root of that average before a step is divided by it."""


class OwnOptimizerOptions(OwnPart, OptimizerOptions):
    """An optimizer of a user's own: `build(options, network) -> torch.optim.Optimizer`, or a class of optimizers such
    as `torch.optim:RMSprop`. `lr`, and `weight_decay` where it is given, are among the options that it gets."""

    kind: ClassVar[str] = "optimizers"
    weight_decay: float | None = Field(default=None, ge=0, le=LARGEST)
    """null: that of the optimizer itself."""

    def given(self) -> dict[str, Any]:
        """`options`, with `lr`, and `weight_decay` where it is given."""
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return {"lr": self.lr, **decay, **self.options}

    @field_validator("options")
    @classmethod
    def _of_the_section(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in ("lr", "weight_decay"):
            if key in options:
                raise ValueError(f"{key} as a key of the section, optimizer.{key}, which learning-rate schedules know")
        return options


OPTIMIZER: dict[str, type[OptimizerOptions]] = {
    "sgd": SgdOptions,
    "adam": AdamOptions,
    "adamw": AdamWOptions,
    "lion": LionOptions,
    "muon": MuonOptions,
}
