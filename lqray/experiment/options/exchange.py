"""How gradients are exchanged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lqray.experiment.options.section import (
    MOST_COORDINATES,
    MOST_ITERATIONS,
    MOST_OF_A_LIST,
    MOST_UNITS,
    Section,
    Word,
)


class ExchangeOptions(Section):
    """How workers exchange gradients."""

    reduction: str = "all_gather"
    """A module of communication/reductions/: all_gather is the paper's algorithm; scatter_reduce sends as many bytes
    however many workers there are, and rounds a second time."""
    gather_bits: int = Field(default=8, ge=1, le=8)
    """scatter_reduce: bits of the codes in which the mean is sent back, which no averaging makes better."""
    buckets: Literal["network", "layer"] = "network"
    """Quantization buckets run through all that DDP exchanges at a time (the paper's), or start anew at every layer's
    tensor."""
    bucket_cap_mb: float = Field(default=25.0, ge=2**-20, le=MOST_UNITS)
    """MiB of gradient that torch DDP gathers before it starts an exchange: from a byte to a TiB."""
    skip: Annotated[tuple[Word, ...], Field(strict=False, max_length=MOST_OF_A_LIST)] = ()
    """Parameters whose gradients stay in full precision, bundled in one all-reduce: `bias`, `norm` (parameters of
    normalization layers), or a pattern of names such as `layer4.*.weight`."""
    skip_below: int = Field(default=0, ge=0, le=MOST_COORDINATES)
    """Parameters of fewer coordinates stay in full precision, too."""
    error_feedback: Literal[False, True, "scaled"] = False
    """true: each worker adds to its next gradient what quantizing the last one lost (Karimireddy et al. 2019), with
    methods that lose less than there was. scaled: with any method, its decoded values times 1 / (1 + omega), omega its
    relative error."""
    feedback_decay: float = Field(default=0.0, ge=0, lt=1)
    """Error feedback keeps a moving average of what was lost, with this weight of the past (LoCo, Xie et al. 2024); 0:
    only the last loss."""
    feedback_reset: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Error feedback forgets all before every so many iterations; 0: never."""
    feedback_stages: Literal["first", "both"] = "first"
    """both: what the second rounding of scatter_reduce loses is fed back, too, by the worker that rounds."""
    entropy: Literal["none", "rans"] = "none"
    """rans: codes travel entropy coded, on the CPU, where that is smaller than their fixed width."""
    bypass: Literal["never", "auto"] = "never"
    """auto: measure encode, decode and the link at the start, and exchange in full precision where quantizing would not
    be faster. Then the clock has a say in the result."""
    quantize_from: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations exchanged in full precision first."""
    trajectory: Literal["quantized", "full_precision"] = "quantized"
    """full_precision: training follows the mean of the exact gradients, and quantization is only measured."""
    find_unused_parameters: bool = False
    """For models that leave some parameters out of some steps: torch DDP's option of that name."""

    @model_validator(mode="after")
    def _second_stage_can_be_fed_back(self) -> ExchangeOptions:
        if self.feedback_stages == "both" and self.gather_bits == 1:
            raise ValueError("feedback_stages: both needs gather_bits of at least 2: one bit loses more than there was")
        return self
