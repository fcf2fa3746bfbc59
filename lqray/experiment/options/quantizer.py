"""Options of quantization methods, one class per kind.

A name without an entry in the table takes the plain class, so a new file in `quantization/methods` that has no options
of its own needs no change here.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from lqray.experiment.options.budget import OwnBits, RealBits, WholeBits, bits_of, one_number
from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.section import (
    LARGEST,
    MOST_ITERATIONS,
    MOST_SAMPLES,
    MOST_UNITS,
    SMALLEST,
    Iterations,
    Variant,
)

AnyOptions = TypeVar("AnyOptions", bound="QuantizerOptions")


class QuantizerOptions(Variant):
    """How gradients are compressed. Of themselves options of a method that sends no codes: `full_precision` (plain
    all-reduce), `sgd` (one worker, no exchange), and torch's own hooks."""

    selector: ClassVar[str] = "method"
    method: str
    """Which method."""


class PowerSgdOptions(QuantizerOptions):
    """torch's PowerSGD hook: low-rank approximation with error feedback (Vogels et al. 2019)."""

    rank: int = Field(default=4, ge=1, le=MOST_UNITS)
    """Rank of the approximation of each matrix."""
    start_iteration: int = Field(default=10, ge=2, le=MOST_ITERATIONS)
    """Iterations in full precision first."""


class PostLocalSgdOptions(QuantizerOptions):
    """torch's post-local SGD, with `exchange.every` (Lin et al. 2020): its hook, its averager and its optimizer."""

    start_iteration: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations whose gradients are all-reduced first; parameters are averaged every `every` after them."""


class CompressorOptions(QuantizerOptions):
    """A method whose payloads lqray exchanges."""

    def why_no_contraction(self) -> str | None:
        """The reason why the method can never be fed back as it is, where its options alone say so; None where it may
        well be."""
        return None

    def why_not_scaled(self) -> str | None:
        """The reason why decoded values cannot be scaled by what is sent; None where they can."""
        return None


class OwnMethodOptions(OwnPart, CompressorOptions):
    """A compressor of a user's own: a class of `lqray.quantization.Compressor`, made of its options, or a `Method` of
    levels. `bits` and `bucket_size` reach it as if they stood below `options`, so that a matrix over either holds for
    it, too."""

    kind: ClassVar[str] = "methods"
    bits: OwnBits = None
    """Where it has such an option."""
    bucket_size: int | None = Field(default=None, ge=1, le=2**30)
    """Where it has such an option."""

    def given(self) -> dict[str, Any]:
        """See `OwnPart.given`."""
        bits = None if self.bits is None else one_number(self.bits)
        bits = int(bits) if bits is not None and bits.is_integer() else bits
        common = {"bits": bits, "bucket_size": self.bucket_size}
        return {key: value for key, value in common.items() if value is not None} | self.options


class TopKOptions(CompressorOptions):
    """The coordinates of largest magnitude, as values and indices (Aji and Heafield 2017; Stich et al. 2018)."""

    density: float = Field(default=0.01, gt=0, le=1)
    """Share of the coordinates that is sent, at least one of each tensor."""
    values: Literal["float32", "float16", "bfloat16"] = "float32"
    """In which they travel."""


class RandomKOptions(CompressorOptions):
    """Coordinates drawn at random, the same on all workers, times the inverse of their share (Stich et al. 2018)."""

    density: float = Field(default=0.01, gt=0, le=1)
    """Share of the coordinates that is sent, at least one of each tensor."""

    def why_no_contraction(self) -> str | None:
        """See `CompressorOptions.why_no_contraction`."""
        omega = 1 / self.density - 1
        why = f"{omega:.3g} times the energy of what it compresses is lost on average"
        return f"{why}; allowed: below 1" if omega >= 1 else None


class SignOptions(CompressorOptions):
    """The sign of each coordinate times the mean magnitude of its bucket, in one bit (Seide et al. 2014; Karimireddy et
    al. 2019)."""

    bucket_size: int = Field(default=8192, ge=1, le=2**20)
    """Consecutive coordinates that share one magnitude."""
    vote: Literal["mean", "majority"] = "mean"
    """How workers' signs become one gradient: the mean of what they stand for, or the sign that most of them have times
    the mean of their magnitudes (Bernstein et al. 2019)."""


class MicroscalingOptions(CompressorOptions):
    """Numbers of a format over a scale that a group shares."""

    round: Literal["nearest", "stochastic"] = "nearest"
    """To the nearest number, or at random to one of the two around, without bias."""


class Int8Options(MicroscalingOptions):
    """8-bit integers."""

    bucket_size: int = Field(default=256, ge=1, le=2**20)
    """Consecutive coordinates that share a scale, float32."""


def _power_of_two(size: int) -> int:
    if size & (size - 1):
        raise ValueError("a power of two from 32 to 8192")
    return size


class RotatedOptions(CompressorOptions):
    """Blocks that go through a randomized Walsh-Hadamard transform of each worker's own before they are rounded."""

    bucket_size: Annotated[int, Field(ge=32, le=8192), AfterValidator(_power_of_two)] = 512
    """Consecutive coordinates that are rotated together, a power of two from 32 to 8192; the last ones of a tensor are
    padded to as many."""


class EdenOptions(RotatedOptions):
    """Rounded to the best quantizer of a normal variable (EDEN, Vargaftik et al. 2022)."""

    bits: RealBits = 3.0
    """Bits of a coordinate's code; between two whole numbers some blocks have the one, some the other. Each block's
    scale comes on top, 32 / bucket_size bits a coordinate."""


_LEAST_WIDTHS = {"rounding": 1.67, "slopes": 1.36, "dither": 1.04}


class AllocatedOptions(RotatedOptions):
    """More bits in blocks that hold more of the energy."""

    bucket_size: Annotated[int, Field(ge=32, le=8192), AfterValidator(_power_of_two)] = 64
    """Consecutive coordinates that have one width and one norm, of a byte, a power of two from 32 to 8192."""
    bits: RealBits = 2.0
    """Bits of a coordinate on average, norms included; at least one of each code."""
    exponent: float | None = Field(default=None, ge=0, le=4)
    """Of the norm's square in what a bit is worth in a block: 1 has the least squared error; lower ones give quiet
    blocks more. null: 1 with the optimizer sgd, .5 with others, which divide by the gradient's size."""
    inner: Literal["eden", "rounding", "dither", "slopes"] = "eden"
    """What becomes of a block's coordinates. eden: rotated, and rounded to the best quantizer of a normal variable;
    the others divide by the block's largest magnitude, and are exactly unbiased: uniform levels, with stochastic
    rounding or with subtractive dither, or levels with slopes that are best for normal coordinates."""

    def why_no_contraction(self) -> str | None:
        """See `CompressorOptions.why_no_contraction`: errors of one bit and of two, by the largest magnitude of their
        block, are w_1 and w_2; where blocks have either in turn, what is lost grows unless 2**(1/16) w_1**p
        w_2**(1 - p) is below 1, p the share of those of one bit."""
        least = _LEAST_WIDTHS.get(self.inner, 0.0)
        width = one_number(self.bits) - 8 / self.bucket_size
        why = f"blocks have {width:.4g} bits on average, and what is lost in those of one bit grows from step to step"
        return f"{why}; allowed: at least {least}, of bits - 8 / bucket_size" if width < least else None

    def why_not_scaled(self) -> str | None:
        """See `CompressorOptions.why_not_scaled`."""
        return None if self.inner == "eden" else "a norm of a byte is no factor that brings a grid nearer"


class BucketOptions(CompressorOptions):
    """A quantizer: gradients travel as codes of coordinates divided by the norm of their bucket."""

    bucket_size: int = Field(default=8192, ge=1, le=2**20)
    """Consecutive coordinates that share one norm."""
    tail: Literal["quantize", "full_precision"] = "quantize"
    """A last bucket of fewer coordinates: quantized like the others, or sent as float32."""
    rotation: Literal["none", "hadamard"] = "none"
    """hadamard: each bucket, a power of two long, goes through a randomized Walsh-Hadamard transform first and back
    after decoding, which makes its coordinates near-Gaussian (cf. EDEN, Vargaftik et al. 2022)."""

    @model_validator(mode="after")
    def _rotation_needs_a_power_of_two(self) -> BucketOptions:
        if self.rotation == "hadamard" and self.bucket_size & (self.bucket_size - 1):
            raise ValueError(f"rotation: hadamard needs a bucket_size that is a power of two; found {self.bucket_size}")
        return self


class FixedLevelsOptions(BucketOptions):
    """A quantizer whose levels never change."""

    bits: WholeBits = 3
    """Bits per code; 2**bits levels."""


class TernaryOptions(BucketOptions):
    """Levels -1, 0, 1 in two bit planes (TernGrad, Wen et al. 2017)."""

    bits: ClassVar[int] = 2
    clip: float | None = Field(default=None, ge=SMALLEST, le=LARGEST)
    """Clip each tensor to this many of its standard deviations first (2.5 in the paper), which biases the estimate;
    null: no clipping."""


class ExponentialLevelsOptions(FixedLevelsOptions):
    """Levels +-multiplier**j."""

    multiplier: float = Field(default=0.5, gt=0, lt=1)
    """Ratio of neighbouring levels, at the start for methods that adapt."""


class AdaptiveLevelsOptions(ExponentialLevelsOptions):
    """A quantizer that fits its levels to the gradients (Faghri et al. 2020, section 3)."""

    samples: int = Field(default=10, ge=1, le=MOST_SAMPLES)
    """Gradients of each worker that a fit uses."""
    sampling: Literal["training", "fresh"] = "training"
    """training: the gradients of the training steps just before the update, at no extra cost; fresh: as many extra
    backward passes at the update."""
    update_at: Iterations = (0, 100, 2000)
    """Iterations after whose backward pass the levels are fitted anew."""
    update_every: int = Field(default=10_000, ge=0, le=MOST_ITERATIONS)
    """After the last of `update_at`, fit every so many iterations; 0: no more."""
    levels: Literal["shared", "layer"] = "shared"
    """layer: every parameter has statistics and levels of its own, fitted at the same iterations."""
    levels_from: int = Field(default=4, ge=1, le=MOST_UNITS)
    """levels: layer: parameters of fewer whole buckets share levels."""


class MixtureOptions(AdaptiveLevelsOptions):
    """A fit to a mixture: one truncated normal for each of the buckets of largest norm."""

    components: int = Field(default=20, ge=1, le=MOST_UNITS)
    """Buckets of largest norm kept as components of the mixture."""
    weighting: Literal["norm", "norm_squared"] = "norm"
    """Weight of a component: norm, the paper's, or norm_squared, by which the bucket enters the squared error."""


class AlqOptions(MixtureOptions):
    """Every inner level at its optimum under the mixture."""

    solver: Literal["newton", "coordinate", "original"] = "newton"
    """newton: to machine precision, from the best of many starts; coordinate: the paper's coordinate descent; original:
    as far as the paper's own runs came, whose descent stops before the optimum."""
    symmetric: bool = False
    """Only levels that are symmetric around zero."""


class NormlessAlqOptions(AdaptiveLevelsOptions):
    """Every inner level at its optimum under one truncated normal, pooled over all buckets."""

    solver: Literal["newton", "coordinate", "original"] = "newton"
    """As of `alq`."""
    symmetric: bool = False
    """Only levels that are symmetric around zero."""


class AmqOptions(MixtureOptions):
    """Exponential levels of the best multiplier under the mixture."""

    solver: Literal["newton", "original"] = "newton"
    """newton: the best multiplier; original: as far as the paper's own runs came."""


class NormlessAmqOptions(AdaptiveLevelsOptions):
    """Exponential levels of the best multiplier under one truncated normal, pooled over all buckets."""

    solver: Literal["newton", "original"] = "newton"
    """As of `amq`."""


class OptimalOptions(AdaptiveLevelsOptions):
    """Levels at the exact optimum of the histogram of all sampled normalized coordinates."""

    weighting: Literal["norm", "norm_squared"] = Field(default="norm_squared")
    """Weight of a bucket's coordinates: norm_squared is that of the squared error."""


class DitherOptions(FixedLevelsOptions):
    """Subtractive dither: uniform levels, of whose rounding noise the decoder takes back what it knows."""

    def why_no_contraction(self) -> str | None:
        """See `CompressorOptions.why_no_contraction`: errors are below half a gap."""
        why = "an error may be 1 times the largest magnitude of its bucket; allowed: below 1"
        return why if one_number(self.bits) == 1 and self.bucket_size > 1 else None


class SlopesOptions(OptimalOptions):
    """Levels and slopes of least expected variance for the histogram of all sampled normalized coordinates."""

    slope: Literal["level", "common"] = "level"
    """level: each level has a slope of its own; common: one for all of them."""


def by_bits(chosen: AnyOptions) -> dict[float, AnyOptions]:
    """Options with each of the numbers of bits that they have by parameter, in the order of their patterns; with one
    for all parameters, or none, themselves."""
    bits = getattr(chosen, "bits", None)
    if not isinstance(bits, tuple):
        return {bits_of(bits, ""): chosen}
    numbers = dict.fromkeys(number for _, number in bits)
    return {number: chosen.model_copy(update={"bits": number}) for number in numbers}


def resolved_for(chosen: QuantizerOptions, optimizer: str) -> QuantizerOptions:
    """Options with what they leave to the optimizer, by its name: the exponent of `allocated`."""
    if isinstance(chosen, AllocatedOptions) and chosen.exponent is None:
        return chosen.model_copy(update={"exponent": 1.0 if optimizer == "sgd" else 0.5})
    return chosen


QUANTIZER: dict[str, type[QuantizerOptions]] = {
    "full_precision": QuantizerOptions,
    "sgd": QuantizerOptions,
    "fp16": QuantizerOptions,
    "bf16": QuantizerOptions,
    "powersgd": PowerSgdOptions,
    "post_local_sgd": PostLocalSgdOptions,
    "topk": TopKOptions,
    "random_k": RandomKOptions,
    "signsgd": SignOptions,
    "int8": Int8Options,
    "mxfp8": MicroscalingOptions,
    "mxfp4": MicroscalingOptions,
    "eden": EdenOptions,
    "drive": RotatedOptions,
    "allocated": AllocatedOptions,
    "terngrad": TernaryOptions,
    "nuqsgd": ExponentialLevelsOptions,
    "alq": AlqOptions,
    "alq_inf": AlqOptions,
    "alq_n": NormlessAlqOptions,
    "alqg": MixtureOptions,
    "alqg_n": AdaptiveLevelsOptions,
    "amq": AmqOptions,
    "amq_inf": AmqOptions,
    "amq_n": NormlessAmqOptions,
    "optimal": OptimalOptions,
    "optimal_inf": OptimalOptions,
    "dither": DitherOptions,
    "slopes": SlopesOptions,
}
