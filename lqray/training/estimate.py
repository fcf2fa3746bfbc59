"""What a trial will do, from its configuration alone: no data is read and nothing is computed but shapes."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lqray.communication.bucket import quantized_sizes
from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.budget import bits_of
from lqray.experiment.options.model import TorchvisionOptions
from lqray.experiment.options.quantizer import CompressorOptions, PostLocalSgdOptions, RandomKOptions, by_bits
from lqray.experiment.parts import is_reference
from lqray.experiment.schema import Trial
from lqray.quantization import compressor_of
from lqray.quantization.compressor import near_square
from lqray.training.dataset import load_dataset
from lqray.training.known_data import KnownData, known_data
from lqray.training.models import build_model
from lqray.training.optimizers import build_optimizer
from lqray.training.steps.fragments import fragments_of

_log = logging.getLogger(__name__)

_FLOPS_PER_SECOND = 2e10
_STEP_SECONDS = 3e-3
_PROBE = 2**16
_Sizes = tuple[tuple[str, int], ...]
_FLOAT_BYTES = {"full_precision": 4, "fp16": 2, "bf16": 2, "post_local_sgd": 4}


@dataclass(frozen=True)
class Estimate:
    """iterations: optimizer steps. parameters: trained coordinates. bytes_per_step: that a process sends, about; None
    for methods whose bytes depend on more than a count (PowerSGD), for reductions of a user's own, and for hosts that
    are known only once processes are placed. flops_per_step: of all workers, both passes."""

    iterations: int
    parameters: int
    bytes_per_step: float | None
    flops_per_step: float

    def seconds(self, processes: int) -> float:
        """A rough guess for CPUs of which nothing is known: 20 GFLOP/s for each process, 3 ms for each step."""
        return self.iterations * (self.flops_per_step / processes / _FLOPS_PER_SECOND + _STEP_SECONDS)


def estimate(trial: Trial, processes: int) -> Estimate | None:
    """For a trial on so many processes; None for a dataset that is not here, and for a model of a user's own that is
    not built without numbers. A dataset of which too little is known without its files, such as those of a user's own,
    is loaded. Raises UnfitTrialError for a network that cannot be built, or does not take its data."""
    data = known_data(trial.data) or _loaded(trial.data.model_dump_json())
    known = _model(trial.model.model_dump_json(), data.shape, data.classes, data.tokens) if data else None
    if data is None or known is None:
        return None
    sizes, flops = known
    parameters = sum(size for _, size in sizes)
    schedule, batch = trial.schedule, trial.schedule.batch_size * trial.workers
    iterations = schedule.iterations or (schedule.epochs or 1) * max(1, data.examples // batch)
    sent = _bytes(trial, sizes, processes)
    if sent is not None:
        sent /= trial.exchange.every or 1
    if sent is not None and isinstance(trial.quantizer, PostLocalSgdOptions) and trial.exchange.every:
        warm = min(iterations, trial.quantizer.start_iteration) / iterations
        sent *= warm * trial.exchange.every + 1 - warm
    return Estimate(iterations, parameters, sent, 3 * flops * batch)


def handed(trial: Trial) -> tuple[str, float, float, int] | None:
    """(reduction, bytes of a worker's payload a step, of the encoded mean of everything a step, coordinates): what one
    worker, or with `hierarchical` one host, hands to its reduction. None where `estimate` knows no bytes, for
    reductions of a user's own, and where nothing is exchanged. Raises as `estimate`."""
    data = known_data(trial.data) or _loaded(trial.data.model_dump_json())
    known = _model(trial.model.model_dump_json(), data.shape, data.classes, data.tokens) if data else None
    quantizer, exchange = trial.quantizer, trial.exchange
    if known is None or quantizer.method == "sgd":
        return None
    n, every = sum(size for _, size in known[0]), exchange.every or 1
    if quantizer.method in _FLOAT_BYTES:
        return "all_reduce", _float_bytes(trial) * n / every, 0.0, n
    if not isinstance(quantizer, CompressorOptions) or is_reference(exchange.reduction):
        return None
    payload = _bits(quantizer, known[0]) / 8
    mean = _mean_bytes(trial, n, payload) if exchange.reduction == "scatter_reduce" else 0.0
    return exchange.reduction, payload / every, mean / every, n


@lru_cache(maxsize=16)
def _loaded(config: str) -> KnownData | None:
    """What a dataset says of itself; None where it cannot be loaded here."""
    annotation: Any = Trial.model_fields["data"].annotation
    try:
        dataset = load_dataset(TypeAdapter(annotation).validate_json(config))
        inputs, _ = dataset.train_batch(torch.zeros(1, dtype=torch.int64), 0)
    except Exception as error:  # of a user's own part, whatever it is: a trial will say it in its own words
        _log.debug("%s: %s", config, error)
        return None
    return KnownData(
        tuple(dataset.shape), dataset.classes, dataset.train_examples, tokens=not inputs.is_floating_point()
    )


@lru_cache(maxsize=256)
def _model(config: str, shape: tuple[int, ...], classes: int, tokens: bool) -> tuple[_Sizes, float] | None:
    """Trained parameters, and operations of a forward pass of one example; None where that takes numbers. Raises
    UnfitTrialError."""
    with torch.device("meta"):
        model = _built(config, shape, classes)
        if model is None:
            return None
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                model.eval()(torch.empty(1, *shape, dtype=torch.int64 if tokens else torch.float32))
        except NotImplementedError:  # an operator that has no shapes without numbers
            return _trained(model), 0.0
        except (RuntimeError, ValueError) as error:
            if _wants_numbers(error):
                return _trained(model), 0.0
            found = f"a model that does not take data of shape {shape}{_named(shape)}: {error}"
            raise UnfitTrialError(f"model: found {found}; allowed: one that does, or other data") from error
    return _trained(model), counter.get_total_flops()


def _named(shape: tuple[int, ...]) -> str:
    return " (channels, height, width)" if len(shape) == 3 else ""


def _wants_numbers(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def _built(config: str, shape: tuple[int, ...], classes: int) -> nn.Module | None:
    """A model without numbers; pretrained ones have no others. None for one of a user's own that wants them."""
    annotation: Any = Trial.model_fields["model"].annotation
    options = TypeAdapter(annotation).validate_json(config)
    if isinstance(options, TorchvisionOptions):
        options = options.model_copy(update={"pretrained": False})
    try:
        return build_model(options, shape, classes)
    except (RuntimeError, ValueError) as error:
        if _wants_numbers(error) and is_reference(options.name):
            return None
        if isinstance(error, UnfitTrialError) or not isinstance(error, ValueError):
            raise
        raise UnfitTrialError(str(error)) from error


def _trained(model: nn.Module) -> _Sizes:
    return tuple((name, p.numel()) for name, p in model.named_parameters() if p.requires_grad)


def check_network(trial: Trial) -> None:
    """Build a trial's network, without memory for its numbers, with its optimizer, and find in it what `exchange.skip`
    and `quantizer.bits` name, and the layers of `exchange.fragments`. Nothing where too little is known of its data.
    Raises UnfitTrialError."""
    data = known_data(trial.data)
    if data is None:
        return
    config = trial.model.model_dump_json()
    _model(config, data.shape, data.classes, data.tokens)
    with torch.device("meta"):
        model = _built(config, data.shape, data.classes)
    if model is None:
        return
    build_optimizer(trial.optimizer, model)
    try:
        if trial.exchange.every is not None:
            fragments_of(model, trial.exchange.fragments)
        if isinstance(trial.quantizer, CompressorOptions):  # nobody else looks at what is skipped
            quantized_sizes(model, trial.exchange, getattr(trial.quantizer, "bits", None))
    except ValueError as error:
        raise UnfitTrialError(str(error)) from error


def _bytes(trial: Trial, sizes: _Sizes, processes: int) -> float | None:
    quantizer, exchange, n = trial.quantizer, trial.exchange, sum(size for _, size in sizes)
    if processes == 1 or quantizer.method == "sgd":
        return 0.0
    others = processes - 1
    if quantizer.method in _FLOAT_BYTES:
        return 2 * others / processes * _float_bytes(trial) * n
    if not isinstance(quantizer, CompressorOptions):
        return None
    payload = _bits(quantizer, sizes) / 8
    if exchange.reduction == "hierarchical":
        return _bytes_by_hosts(trial, n, payload, processes)
    own = trial.workers // processes * payload
    if exchange.reduction == "all_gather":
        return others * own
    if exchange.reduction != "scatter_reduce":
        return None
    return others / processes * (own + _mean_bytes(trial, n, own))


def _float_bytes(trial: Trial) -> int:
    """Of a coordinate of a method that sends them as numbers."""
    most = 2 if trial.model.dtype == "bf16" and trial.exchange.every is None else 4  # differences are those of masters
    return min(most, _FLOAT_BYTES[trial.quantizer.method])


def _mean_bytes(trial: Trial, n: int, own: float) -> float:
    """Of scatter_reduce's second encoding, of n coordinates; random_k's means travel as its payloads, `own`."""
    if isinstance(trial.quantizer, RandomKOptions):
        return own
    size: int = getattr(trial.quantizer, "bucket_size", 8192)
    return 4 * math.ceil(n / size) + trial.exchange.gather_bits * n / 8


def _bytes_by_hosts(trial: Trial, n: int, payload: float, processes: int) -> float | None:
    """payload: bytes of n coordinates. Where hosts are found by placement, nothing is known."""
    hosts = trial.exchange.hosts
    if hosts is None:
        return None
    beside = max(1, processes // hosts)
    between = (hosts - max(1, hosts // processes)) * payload / beside
    sixteen_bits = trial.exchange.within == "bf16" or (trial.model.dtype == "bf16" and trial.exchange.every is None)
    gradients = (2 if sixteen_bits else 4) * n * (trial.workers // processes + 1) if beside > 1 else 0
    return between + (beside - 1) * (gradients / beside + hosts * payload / beside)


def _bits(quantizer: CompressorOptions, sizes: _Sizes) -> float:
    """Of all parameters, each with its own number of bits."""
    each = by_bits(quantizer)
    held = dict.fromkeys(each, 0)
    for name, size in sizes:
        held[bits_of(getattr(quantizer, "bits", None), name)] += size
    return sum(_bits_per_coordinate(one.model_dump_json()) * held[bits] for bits, one in each.items() if held[bits])


@lru_cache(maxsize=256)
def _bits_per_coordinate(config: str) -> float:
    """As measured on zeros: how many bytes a tensor takes does not depend on what is in it."""
    annotation: Any = Trial.model_fields["quantizer"].annotation
    compressor = compressor_of(TypeAdapter(annotation).validate_json(config))
    shape = near_square(_PROBE) if compressor.layers else (_PROBE,)
    return compressor.encode(torch.zeros(shape), seed=0, offset=0).bits_per_coordinate
