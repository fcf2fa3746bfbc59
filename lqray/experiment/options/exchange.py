"""How gradients are exchanged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lqray.experiment import names
from lqray.experiment.options.outer import OuterOptions
from lqray.experiment.options.own import FreeOptions
from lqray.experiment.options.section import (
    MOST_COORDINATES,
    MOST_ITERATIONS,
    MOST_OF_A_LIST,
    MOST_UNITS,
    MOST_WORKERS,
    Section,
    Word,
)
from lqray.experiment.parts import OWN, is_own, known, reference_of

SELDOM = ("outer", "fragments", "overlap", "mixing")
"""Options of exchanges that are not at every step."""
BETWEEN_HOSTS = ("hosts", "within")
"""Options of exchanges that are exact inside a host."""


def without_effect(every: object, reduction: object) -> tuple[str, ...]:
    """Options that do nothing beside these values of the ones that they belong to: trials leave them out."""
    seldom = SELDOM if every is None else ()
    return seldom if reduction == "hierarchical" else (*seldom, *BETWEEN_HOSTS)


def _known_reduction(name: str) -> str:
    if reference := reference_of("reductions", name):
        return reference
    if name not in names.reductions():
        raise ValueError(f"one of {', '.join(known('reductions'))}, or one of your own, written {OWN}")
    return name


class ExchangeOptions(Section):
    """How workers exchange gradients."""

    reduction: Annotated[str, AfterValidator(_known_reduction)] = "all_gather"
    """A module of communication/reductions/: all_gather is the paper's algorithm; scatter_reduce sends as many bytes
    however many workers there are, and rounds a second time; hierarchical averages exactly inside each host, and sends
    the hosts' means compressed. Or one of a user's own, module:attribute."""
    options: FreeOptions = Field(default={})
    """Whatever a reduction of a user's own takes; left out with those of lqray's."""
    rounding: Literal["independent", "correlated"] = "independent"
    """Of methods that round at random, to levels or to numbers of a format. correlated: workers draw their roundings
    together, so that errors cancel where gradients agree (Suresh et al. 2022); what travels stays the same."""
    hosts: int | None = Field(default=None, ge=2, le=MOST_WORKERS)
    """hierarchical: groups of neighbouring workers whose mean is exact; null: as many as the machines, or containers
    with a network of their own, that the processes are on. Then where they are placed has a say in the result."""
    within: Literal["float32", "bf16"] = "float32"
    """hierarchical: in what gradients, and the host's mean of them, travel inside a host. float32: as they are. bf16:
    rounded to the nearest before they are averaged, and so is the mean."""
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
    precondition: Literal[False, True, "optimizer"] = False
    """Gradients are divided by the root of their second moment before they are compressed, and multiplied by it after:
    an average, of squares of the means that all ranks have decoded, that the exchange keeps and that costs no bit. For
    optimizers that divide by it, such as Adam. NMSE is then that of divided gradients. optimizer: by that which the
    optimizer keeps, as Adam and AdamW do."""
    precondition_decay: float = Field(default=0.95, ge=0, lt=1)
    """Weight of the past in that average, where it is the exchange's own."""
    precondition_floor: float = Field(default=0.3, ge=0, le=1)
    """No coordinate is divided by less than this times the root mean square over 64 neighbours, nor than a hundredth of
    that over all."""
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
    every: int | None = Field(default=None, ge=1, le=MOST_ITERATIONS)
    """null: gradients are exchanged at every step. H: each worker takes so many steps alone, and then the difference
    of its parameters from those that all share is exchanged (DiLoCo, Douillard et al. 2023)."""
    outer: OuterOptions = OuterOptions()
    """With `every`: what steps along the mean of the differences."""
    fragments: int = Field(default=1, ge=1, le=MOST_UNITS)
    """With `every`: groups of whole layers that are exchanged in turn, each once in H steps (Streaming DiLoCo,
    Douillard et al. 2025)."""
    overlap: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """With `every`: steps that workers go on for while an exchange is under way, before its result is applied."""
    mixing: float = Field(default=0.0, ge=0, lt=1)
    """With `every`: share of its own parameters that a worker keeps when the result of an exchange is applied."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_without_effect(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        left_out = without_effect(values.get("every"), values.get("reduction"))
        return {key: value for key, value in values.items() if key not in left_out}

    @model_validator(mode="after")
    def _everything_comes_within_a_round(self) -> ExchangeOptions:
        if self.every is not None and self.fragments > self.every:
            raise ValueError(f"at most `every` fragments, one for each step; found {self.fragments} and {self.every}")
        if self.every is not None and self.overlap >= self.every:
            raise ValueError(f"an overlap below `every`; found {self.overlap} and {self.every}")
        return self

    @model_validator(mode="after")
    def _hosts_send_slices(self) -> ExchangeOptions:
        if self.reduction == "hierarchical" and self.entropy != "none":
            allowed = "none: each process of a host sends a slice of its payload, and coded streams have no slices"
            found = f"{self.entropy} with reduction: hierarchical"
            context = {"key": "exchange.entropy", "found": found, "allowed": allowed}
            raise PydanticCustomError("combination", "entropy: {allowed}", context)
        return self

    @model_validator(mode="after")
    def _second_stage_can_be_fed_back(self) -> ExchangeOptions:
        if self.feedback_stages == "both" and self.gather_bits == 1:
            raise ValueError("feedback_stages: both needs gather_bits of at least 2: one bit loses more than there was")
        return self

    @model_validator(mode="before")
    @classmethod
    def _options_of_own(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "options" not in values or is_own("reductions", values.get("reduction")):
            return values
        return {key: value for key, value in values.items() if key != "options"}
