"""Options of a method and of an exchange as the keywords of one call: no two of them have the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lqray.experiment import names
from lqray.experiment.errors import did_you_mean
from lqray.experiment.options.exchange import BETWEEN_HOSTS, SELDOM, ExchangeOptions
from lqray.experiment.options.quantizer import QUANTIZER, CompressorOptions, FixedLevelsOptions
from lqray.quantization import Compressor, create
from lqray.quantization.plan import CompressorPlan

# What is DDP's own to say, or needs a training loop of lqray's.
_ELSEWHERE = {
    "bucket_cap_mb": "DistributedDataParallel(..., bucket_cap_mb=...)",
    "find_unused_parameters": "DistributedDataParallel(..., find_unused_parameters=...)",
    **dict.fromkeys(("every", *SELDOM), "it in an experiment file, below exchange: lqray trains so, a hook cannot"),
    "bypass": "not attaching: lqray.communication.decide measures whether quantizing is faster here",
}
_EXCHANGE = tuple(name for name in ExchangeOptions.model_fields if name not in _ELSEWHERE)


def compressor_and_options(
    method: str, options: Mapping[str, Any], caller: str, own: Sequence[str] = _EXCHANGE
) -> tuple[Compressor, ExchangeOptions]:
    """What keywords say that are a method's options or, of the names in `own`, the exchange's. Raises ValueError."""
    of_method = QUANTIZER.get(method, FixedLevelsOptions)
    if method in names.methods() and not issubclass(of_method, CompressorOptions):
        raise ValueError(
            f"{caller}: {method} is not a method whose payloads lqray sends; allowed: {', '.join(_sent())}. Without "
            "quantizing there is nothing to attach, and torch's own hooks are given to register_comm_hook"
        )
    known = (*of_method.model_fields, *own)
    for name in options:
        if name in _ELSEWHERE:
            raise ValueError(f"{caller} has no option {name}; use {_ELSEWHERE[name]}")
        if method in names.methods() and name not in known:
            hint = did_you_mean(name, known)
            allowed = ", ".join(each for each in known if each != "method")
            raise ValueError(f"{caller}: unknown option {name!r}; allowed with {method}: {allowed}; {hint or ''}")
    exchanged = exchange_options({name: options[name] for name in options if name in own}, caller)
    try:
        return create(method, **{name: options[name] for name in options if name not in own}), exchanged
    except ValidationError as error:
        raise _told(error, caller) from None


def exchange_options(options: Mapping[str, Any], caller: str) -> ExchangeOptions:
    """Those that keywords of these names say. Raises ValueError."""
    idle = [name for name in BETWEEN_HOSTS if name in options]
    if idle and options.get("reduction") != "hierarchical":
        raise ValueError(f"{caller}: {', '.join(idle)} without reduction='hierarchical'; allowed: with it, or left out")
    try:
        return ExchangeOptions.model_validate(options)
    except ValidationError as error:
        raise _told(error, caller) from None


def refuse_layers(compressor: Compressor, caller: str) -> None:
    """Raise ValueError for a compressor that wants layers in their shapes, or by their names, where there are none."""
    if isinstance(compressor, CompressorPlan):
        raise ValueError(
            f"{caller}: {compressor.name} encodes each parameter by its name, and here tensors have none; allowed: one "
            "number of bits and shared levels, or lqray.attach on a DistributedDataParallel model"
        )
    if compressor.layers:
        raise ValueError(
            f"{caller}: {compressor.name} encodes each layer in its own shape, and here tensors come flat; allowed: "
            "another compressor, or lqray.attach on a DistributedDataParallel model"
        )


def _told(error: ValidationError, caller: str) -> ValueError:
    said = [f"{'.'.join(map(str, each['loc']))}={each['input']!r}: {each['msg']}" for each in error.errors()]
    return ValueError(f"{caller}: {'; '.join(said)}")


def _sent() -> list[str]:
    """Methods whose payloads lqray's exchange sends."""
    return [name for name in names.methods() if issubclass(QUANTIZER.get(name, FixedLevelsOptions), CompressorOptions)]
