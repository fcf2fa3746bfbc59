"""Options of everything that a YAML chooses by name: one class per name, with meaning, unit and range of each key.
Those of datasets are in `dataset_options`.

A name without an entry in its table takes the table's plain class, so a new file in `quantization/methods` that has no
options of its own needs no change here.

A key that belongs to another name of the same section (momentum beside `name: adam`) is left out of the trial, so that
one `base` serves a sweep over names; a key that belongs to none is an error.

Every number has a range, wide enough for whatever can be computed: what lies outside fails only when its trial's turn
comes, or means nothing. Where a limit is not the method's own, its reason stands with one of the constants below.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lqray.experiment.identity import canonical_json
from lqray.experiment.store import wrong_address

MOST_ITERATIONS = 2**32 - 1
"""Steps, or epochs, of a run: an exchange counts iterations with 32 bits, and its rounding noise follows from them."""
SMALLEST, LARGEST = 1e-38, 1e38
"""Of numbers that float32 tensors are multiplied by: beyond them are its zero and its infinity."""
MOST_EXAMPLES = 2**31 - 1
"""In a data set, and hence in a batch: more than any that lqray reads into memory has."""
MOST_UNITS = 2**20
"""Units or channels of a layer."""
MOST_WEIGHTS = 2**34
"""Of a layer, and coordinates of synthetic data: 64 GiB in float32, as much as a large GPU has."""
MOST_WORKERS = 2**14
"""Workers, processes and trials at a time: more than any cluster that Ray is known to serve has processes."""
MOST_SAMPLES = 10_000
"""Extra gradients at one measurement or fit; each costs a backward pass or its memory."""
MOST_OF_A_LIST = 10_000
"""Entries of a list, which every error and every record of a trial repeats."""
MOST_OF_A_WORD = 4096
"""Characters, as of a path."""
MOST_COORDINATES = 2**48
"""Of a tensor, as lqray.ops has it."""
MOST_SEED = 2**64 - 1
"""Integers of 64 bits."""
MOST_DRAWS = 100_000
"""Of a search: more trials than have ever been run to find a number."""


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise ValueError("strictly ascending iterations")
    return values


Iterations = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MOST_ITERATIONS)], ...],
    Field(strict=False, max_length=MOST_OF_A_LIST),
    AfterValidator(_ascending),
]
Word = Annotated[str, Field(min_length=1, max_length=MOST_OF_A_WORD)]
Units = Annotated[int, Field(ge=1, le=MOST_UNITS)]


class Section(BaseModel):
    """A frozen part of a trial: unknown keys forbidden, no silent conversions, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @cached_property
    def canonical_json(self) -> str:
        """The section's part of a trial's identity; see `lqray.experiment.identity`."""
        return canonical_json(self)


class Variant(Section):
    """A section whose class is chosen by the value of `selector`. `siblings`: keys of its other names."""

    selector: ClassVar[str] = "name"
    siblings: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _leave_siblings_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.siblings.isdisjoint(values):
            return values
        own = cls.model_fields
        return {key: value for key, value in values.items() if key in own or key not in cls.siblings}


class ModelOptions(Variant):
    """A model: a module of training/models. How it is computed is part of the trial: it changes the last bits."""

    name: str
    channels_last: bool = False
    """Images and convolutions in channels-last memory order."""
    compile: bool = False
    """Compile the model with torch.compile, which takes a while at the start and needs a C++ compiler."""
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 where torch's autocast deems it safe; weights and gradients stay float32."""


def _weights_fit(key: str, one: int, two: int) -> None:
    if one * two > MOST_WEIGHTS:
        raise ValueError(f"{key} whose weights are at most {MOST_WEIGHTS:,}; found {one} x {two} of a layer")


class CnnOptions(ModelOptions):
    """Two 3x3 convolutions with max pooling, then two fully connected layers."""

    channels: Annotated[tuple[Units, Units], Field(strict=False)] = (16, 32)
    """Output channels of the two convolutions."""
    hidden: int = Field(default=64, ge=1, le=MOST_UNITS)
    """Units of the hidden fully connected layer."""

    @model_validator(mode="after")
    def _fits(self) -> CnnOptions:
        one, two = self.channels
        _weights_fit("channels", one, 9 * two)
        _weights_fit("hidden, of as many channels,", two, self.hidden)
        return self


class MlpOptions(ModelOptions):
    """Fully connected layers with ReLU between them."""

    layers: Annotated[tuple[Units, ...], Field(strict=False, max_length=1000)] = (64,)
    """Units of each hidden layer."""

    @model_validator(mode="after")
    def _fits(self) -> MlpOptions:
        for one, two in itertools.pairwise(self.layers):
            _weights_fit("layers", one, two)
        return self


def _resnet_depth(depth: int) -> int:
    if not 8 <= depth <= 1202 or (depth - 2) % 6:
        raise ValueError("6 n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, ..., 110, ..., 1202")
    return depth


def _wide_resnet_depth(depth: int) -> int:
    if not 10 <= depth <= 1204 or (depth - 4) % 6:
        raise ValueError("6 n + 4: 10, 16, 22, 28, 34, 40, ..., 1204")
    return depth


class ResnetOptions(ModelOptions):
    """Residual network for small images: 16, 32, 64 channels, option-A shortcuts (He et al. 2016)."""

    depth: Annotated[int, AfterValidator(_resnet_depth)] = 20
    """Layers with weights: 6 n + 2 for n blocks a stage."""


class WideResnetOptions(ModelOptions):
    """Wide residual network (Zagoruyko and Komodakis 2016)."""

    depth: Annotated[int, AfterValidator(_wide_resnet_depth)] = 28
    """Layers with weights: 6 n + 4 for n blocks a stage."""
    width: int = Field(default=10, ge=1, le=1024)
    """Times 16, 32 and 64 channels."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped between a block's convolutions."""


class TorchvisionOptions(ModelOptions):
    """A classifier of torchvision.models."""

    architecture: Word
    """Its name there, such as resnet18."""
    pretrained: bool = False
    """Start from torchvision's weights, which it downloads."""


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


class QuantizerOptions(Variant):
    """A method that sends no codes: `full_precision` (plain all-reduce), `sgd` (one worker, no exchange), and torch's
    own hooks."""

    selector: ClassVar[str] = "method"
    method: str


class PowerSgdOptions(QuantizerOptions):
    """torch's PowerSGD hook: low-rank approximation with error feedback (Vogels et al. 2019)."""

    rank: int = Field(default=4, ge=1, le=MOST_UNITS)
    """Rank of the approximation of each matrix."""
    start_iteration: int = Field(default=10, ge=2, le=MOST_ITERATIONS)
    """Iterations in full precision first."""


class BucketOptions(QuantizerOptions):
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

    bits: int = Field(default=3, ge=1, le=8)
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


class MixtureOptions(AdaptiveLevelsOptions):
    """A fit to a mixture: one truncated normal for each of the buckets of largest norm."""

    components: int = Field(default=20, ge=1, le=MOST_UNITS)
    """Buckets of largest norm kept as components of the mixture."""
    weighting: Literal["norm", "norm_squared"] = "norm"
    """Weight of a component: norm, the paper's, or norm_squared, by which the bucket enters the squared error."""


class AlqOptions(MixtureOptions):
    """Every inner level at its optimum under the mixture."""

    solver: Literal["newton", "coordinate"] = "newton"
    """newton: to machine precision, from the best of many starts; coordinate: the paper's coordinate descent."""
    symmetric: bool = False
    """Only levels that are symmetric around zero."""


class NormlessAlqOptions(AdaptiveLevelsOptions):
    """Every inner level at its optimum under one truncated normal, pooled over all buckets."""

    solver: Literal["newton", "coordinate"] = "newton"
    """As of `alq`."""
    symmetric: bool = False
    """Only levels that are symmetric around zero."""


class OptimalOptions(AdaptiveLevelsOptions):
    """Levels at the exact optimum of the histogram of all sampled normalized coordinates."""

    weighting: Literal["norm", "norm_squared"] = Field(default="norm_squared")
    """Weight of a bucket's coordinates: norm_squared is that of the squared error."""


MODEL: dict[str, type[ModelOptions]] = {
    "cnn": CnnOptions,
    "mlp": MlpOptions,
    "resnet": ResnetOptions,
    "torchvision": TorchvisionOptions,
    "wide_resnet": WideResnetOptions,
}
OPTIMIZER: dict[str, type[OptimizerOptions]] = {"sgd": SgdOptions, "adam": AdamOptions, "adamw": AdamWOptions}
QUANTIZER: dict[str, type[QuantizerOptions]] = {
    "full_precision": QuantizerOptions,
    "sgd": QuantizerOptions,
    "fp16": QuantizerOptions,
    "bf16": QuantizerOptions,
    "powersgd": PowerSgdOptions,
    "terngrad": TernaryOptions,
    "nuqsgd": ExponentialLevelsOptions,
    "alq": AlqOptions,
    "alq_inf": AlqOptions,
    "alq_n": NormlessAlqOptions,
    "alqg": MixtureOptions,
    "alqg_n": AdaptiveLevelsOptions,
    "amq": MixtureOptions,
    "amq_inf": MixtureOptions,
    "amq_n": AdaptiveLevelsOptions,
    "optimal": OptimalOptions,
}


class ScheduleOptions(Section):
    """How long to train, in what steps."""

    iterations: int | None = Field(default=None, ge=1, le=MOST_ITERATIONS)
    """Optimizer steps."""
    epochs: int | None = Field(default=None, ge=1, le=MOST_ITERATIONS)
    """Instead of `iterations`: passes over the training set. Then `decay_at`, `decay_every` and `warm_up` count epochs,
    too."""
    batch_size: int = Field(ge=1, le=MOST_EXAMPLES)
    """Examples per worker and step: a step sees workers * batch_size of them."""
    decay_at: Iterations = ()
    """Iterations at which the learning rate is multiplied by decay_rate."""
    decay_rate: float = Field(default=0.1, ge=SMALLEST, le=1)
    decay: Literal["step", "exponential", "cosine"] = "step"
    """step: the learning rate drops at `decay_at` and every `decay_every`; exponential: it falls evenly, by decay_rate
    every `decay_every` iterations (0: over the run); cosine: to 0 at the end, by half a cosine."""
    decay_every: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations from one decay to the next; 0: none but `decay_at`."""
    warm_up: int = Field(default=0, ge=0, le=MOST_ITERATIONS)
    """Iterations over which the learning rate rises linearly first."""
    evaluate_every: int = Field(default=100, ge=1, le=MOST_ITERATIONS)
    """Iterations between evaluations on the test set; the last iteration is always followed by one."""
    evaluate_train: bool = False
    """Evaluate on the training set, too."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite gradient does: it stops the trial, or its step is left out on all ranks alike."""

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleOptions:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("exactly one of iterations and epochs")
        return self


class ExchangeOptions(Section):
    """How workers exchange gradients."""

    reduction: str = "all_gather"
    """A module of communication/: all_gather is the paper's algorithm; scatter_reduce sends as many bytes however many
    workers there are, and rounds a second time."""
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


class TelemetryOptions(Section):
    """What is measured while training."""

    every: int = Field(default=10, ge=0, le=MOST_ITERATIONS)
    """Iterations between measurements; 0: none."""
    samples: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    """Extra gradients of each worker at a measurement, from which the variance of the gradient and of the quantized one
    are estimated (10 in the paper); 0: none, and no such metrics."""

    @model_validator(mode="after")
    def _variance_needs_two(self) -> TelemetryOptions:
        if self.samples == 1:
            raise ValueError("samples: 0, or at least 2, which a variance needs")
        return self


def _share_of_gpus(share: float) -> float:
    # Ray counts in ten-thousandths.
    if (share > 1 and share != int(share)) or 0 < share < 1e-4:
        raise ValueError("a whole number of GPUs, or a share of one below 1, of at least 0.0001; 0: none")
    return share


def _trials_at_a_time(count: Any) -> Any:
    if count != "auto" and (not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_WORKERS):
        raise ValueError(f"auto, or a number of trials from 1 to {MOST_WORKERS}")
    return count


class Resources(Section):
    """Where trials run. Not part of a trial: elsewhere it gives the same result, up to float summation order."""

    processes: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    """Processes of a trial, a divisor of its workers; by default one for each. Workers that share a process compute
    their gradients in turn, each encoded on its own."""
    cpus_per_process: int = Field(default=1, ge=1, le=4096)
    """CPU cores, and torch threads, of a process."""
    gpus_per_process: Annotated[float, AfterValidator(_share_of_gpus)] = Field(default=0, ge=0, le=MOST_WORKERS)
    """GPUs of a process: a whole number, or a share of one below 1; 0 trains on the CPU."""
    memory_gib_per_process: float | None = Field(default=None, ge=2**-10, le=MOST_UNITS)
    """Memory that a process may use, in GiB; beyond it, the trial fails as out of memory. Ray sets as much aside."""
    timeout_seconds: float = Field(default=600.0, ge=0.01, le=30 * 86400)
    """How long a process waits for the others in a collective before it fails; at most a month."""
    network_interface: str | None = Field(default=None, min_length=1, max_length=MOST_OF_A_WORD)
    """Network interface that gradients travel over, such as eth0, on every machine; a prefix will do for NCCL. By
    default GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME of the machine's environment, or else torch's choice."""
    concurrent_trials: Annotated[int | Literal["auto"], BeforeValidator(_trials_at_a_time)] = "auto"
    """Trials at a time; auto: as many as fit."""


class Tracking(Section):
    """Where runs are recorded. Not part of a trial."""

    uri: Word | None = Field(default=None, json_schema_extra={"founding": "sqlite:///lqray.db"})
    """An MLflow tracking URI; a relative sqlite path is relative to the directory that `lqray run` is called from, and
    $NAME or ${NAME} is a variable of its environment. By default MLFLOW_TRACKING_URI there, else sqlite:///lqray.db."""
    figures: bool = True
    """Draw the levels of each quantized trial of a minute or more against the density of its last gradient, when it
    ends."""
    log_model: bool = False
    """Keep the weights at the end of each trial as an MLflow model."""
    system_metrics: bool = True
    """Record CPU, memory, disk, network and GPUs of the machine of each trial's first process."""


def _storage_folder(folder: str | None) -> str | None:
    if folder is not None and (wrong := wrong_address(folder)):
        raise ValueError(wrong)
    return folder


class Storage(Section):
    """Where checkpoints and logs of trials are kept. Not part of a trial."""

    folder: Annotated[Word | None, AfterValidator(_storage_folder)] = None
    """A folder, on several machines one that all of them see; or s3://BUCKET/PREFIX, gs://... of an object store. A
    relative path is relative to the directory that `lqray run` is called from; ~ is the home directory, $NAME or
    ${NAME} a variable of its environment. By default LQRAY_STORAGE of that environment, else lqray-storage."""
    checkpoint_every: int = Field(default=500, ge=1, le=MOST_ITERATIONS)
    """Iterations between checkpoints; the end of a run is always one."""
    keep: int = Field(default=2, ge=1, le=MOST_ITERATIONS)
    """Checkpoints of a trial that stay, beside the best."""


class EarlyStopping(Section):
    """ASHA (Li et al. 2020): at rungs of grace_period * reduction_factor**k iterations only the best 1/reduction_factor
    of the trials go on."""

    metric: Word = "test/accuracy"
    """Any reported metric."""
    mode: Literal["max", "min"] = "max"
    grace_period: int = Field(default=1, ge=1, le=MOST_ITERATIONS)
    """Iterations before a trial can be stopped."""
    reduction_factor: float = Field(default=4, ge=1.01, le=MOST_WORKERS)
    brackets: int = Field(default=1, ge=1, le=100)


class Domain(Section):
    """Values that `search` draws a key from: exactly one of the four."""

    choice: Annotated[tuple[Any, ...] | None, Field(strict=False, min_length=1, max_length=MOST_OF_A_LIST)] = None
    """Any of these, equally likely."""
    uniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    """Between low and high."""
    log_uniform: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    """Between low and high, both above 0, its logarithm uniformly."""
    integer: Annotated[tuple[int, int] | None, Field(strict=False)] = None
    """From low to high, both included."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Domain:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "exactly one of choice: [...], uniform: [low, high], log_uniform: [low, high], integer: [low, high]"
            )
        bounds = self.uniform or self.log_uniform or self.integer
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]}: [low, high] with low below high")
        if bounds and not max(map(abs, bounds)) <= LARGEST:
            raise ValueError(f"{given[0]}: [low, high] between {-LARGEST:g} and {LARGEST:g}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform: [low, high] with low above 0")
        return self


class Search(Section):
    """What `search:` adds to a sweep: keys drawn from ranges, and early stopping. Not part of a trial."""

    sampler: Literal["random", "grid", "optuna"] = "random"
    """random: every combination of the sweep takes the same `samples` draws, so that methods compare on equal terms;
    grid: all combinations of choices; optuna: without a sweep, each draw made from the results so far (Optuna's TPE,
    through Ray Tune; `pip install optuna`)."""
    samples: int = Field(default=10, ge=1, le=MOST_DRAWS)
    """Draws of the random sampler, or trials that Optuna suggests."""
    metric: Word = "test/accuracy"
    """What Optuna optimizes: any metric of the final evaluation."""
    mode: Literal["max", "min"] = "max"
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Of the draws, which are a function of it, their number and the key."""
    space: dict[str, Domain] = {}
    """Dotted keys of a trial, and where their values come from."""
    early_stopping: EarlyStopping | None = None

    @property
    def adaptive(self) -> bool:
        """Whether draws depend on results and are not known ahead."""
        return self.sampler == "optuna" and bool(self.space)

    @model_validator(mode="after")
    def _something_to_do(self) -> Search:
        if not self.space and self.early_stopping is None:
            raise ValueError("a space to search, or early_stopping, or both")
        if self.sampler == "grid" and any(domain.choice is None for domain in self.space.values()):
            raise ValueError("with sampler: grid every key of the space is a choice: [...]")
        return self
