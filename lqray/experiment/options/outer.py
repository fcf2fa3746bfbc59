"""The optimizer that steps along workers' differences, where they train alone between exchanges."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lqray.experiment.options.section import LARGEST, SMALLEST, Section

_OWN = {"momentum": ("sgd", "nesterov"), "beta1": ("adam",), "beta2": ("adam",), "eps": ("adam",)}


class OuterOptions(Section):
    """The outer optimizer: torch's SGD or Adam, over the parameters that workers share. Its gradient is the mean of how
    far workers have come since they last had these."""

    optimizer: Literal["sgd", "nesterov", "adam"] = "nesterov"
    """nesterov: SGD with Nesterov momentum, as in DiLoCo. sgd with lr 1 and momentum 0: the mean of the workers'
    parameters."""
    lr: float = Field(default=0.7, ge=SMALLEST, le=LARGEST)
    """Learning rate; 1 with sgd goes as far as workers did on average."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd and nesterov."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of adam: weight of the past in the average of differences."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Of adam: weight of the past in the average of their squares."""
    eps: float = Field(default=0.1, ge=SMALLEST, le=LARGEST)
    """Of adam: added to the root of that average before a step is divided by it. Differences are sums of many steps: an
    eps of Adam's usual size would make each coordinate's step as long."""

    @property
    def takes_the_mean(self) -> bool:
        """Whether workers end where the mean of their parameters is."""
        return self.optimizer == "sgd" and self.lr == 1 and not self.momentum

    @model_validator(mode="before")
    @classmethod
    def _leave_options_of_others(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        chosen = values.get("optimizer", cls.model_fields["optimizer"].default)
        return {key: value for key, value in values.items() if chosen in _OWN.get(key, (chosen,))}

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OuterOptions:
        if self.optimizer == "nesterov" and not self.momentum:
            raise ValueError("optimizer: nesterov needs a momentum above 0; without one: optimizer: sgd, momentum: 0")
        return self
