"""What is measured of gradients, and when."""

from __future__ import annotations

from pydantic import Field, model_validator

from lqray.experiment.options.section import MOST_ITERATIONS, MOST_SAMPLES, Section


class TelemetryOptions(Section):
    """What is measured while training."""

    every: int = Field(default=10, ge=0, le=MOST_ITERATIONS)
    """Iterations between measurements; 0: none."""
    samples: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    """Extra gradients of each worker at a measurement, from which the variance of the gradient and of the quantized one
    are estimated (10 in the paper); 0: none, and no such metrics."""
    moments: bool = False
    """Also the error of what was sent as Adam weighs it. Every step then averages squares of its means, 4 bytes a
    parameter, which checkpoints keep."""

    @model_validator(mode="after")
    def _variance_needs_two(self) -> TelemetryOptions:
        if self.samples == 1:
            raise ValueError("samples: 0, or at least 2, which a variance needs")
        return self
