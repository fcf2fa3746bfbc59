"""Options of a method and of an exchange as the keywords of one call: no two of them have the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lqray.experiment import names
from lqray.experiment.errors import did_you_mean
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.options.quantizer import QUANTIZER, FixedLevelsOptions
from lqray.quantization import Quantizer

# What is DDP's own to say, or needs a training loop of lqray's.
_ELSEWHERE = {
    "bucket_cap_mb": "DistributedDataParallel(..., bucket_cap_mb=...)",
    "find_unused_parameters": "DistributedDataParallel(..., find_unused_parameters=...)",
    "bypass": "not attaching: lqray.communication.decide measures whether quantizing is faster here",
}
_EXCHANGE = tuple(name for name in ExchangeOptions.model_fields if name not in _ELSEWHERE)


def quantizer_and_options(
    method: str, options: Mapping[str, Any], caller: str, own: Sequence[str] = _EXCHANGE
) -> tuple[Quantizer, ExchangeOptions]:
    """What keywords say that are a method's options or, of the names in `own`, the exchange's. Raises ValueError."""
    known = (*QUANTIZER.get(method, FixedLevelsOptions).model_fields, *own)
    for name in options:
        if name in _ELSEWHERE:
            raise ValueError(f"{caller} has no option {name}; use {_ELSEWHERE[name]}")
        if method in names.methods() and name not in known:
            hint = did_you_mean(name, known)
            allowed = ", ".join(each for each in known if each != "method")
            raise ValueError(f"{caller}: unknown option {name!r}; allowed with {method}: {allowed}; {hint or ''}")
    reduction = options.get("reduction", "all_gather")
    if reduction not in names.reductions():
        raise ValueError(f"{caller}: reduction={reduction!r}; allowed: {', '.join(names.reductions())}")
    try:
        exchanged = ExchangeOptions.model_validate({name: options[name] for name in options if name in own})
        quantizer = Quantizer.create(method, **{name: options[name] for name in options if name not in own})
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, each['loc']))}={each['input']!r}: {each['msg']}" for each in error.errors()
        )
        raise ValueError(f"{caller}: {said}") from None
    return quantizer, exchanged
