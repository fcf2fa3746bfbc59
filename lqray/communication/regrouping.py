"""The state of an exchange by another number of processes than wrote it.

Of its parts, what error feedback lost and what levels are to be fitted to belong to senders; what scatter-reduce lost
of means belongs to whoever owns that part of a tensor; all else is equal in all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lqray.communication.reduction import Reduction
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor
from lqray.quantization.regrouping import Regrouping, RegroupingError, alike

State = Mapping[str, Mapping[str, Tensor]]


def regrouped(
    states: Sequence[State], regrouping: Regrouping, compressor: Compressor, reduction: Reduction
) -> dict[str, Mapping[str, Tensor]]:
    """The state to load here, of those of all processes of before, in the order of ranks. Raises RegroupingError."""
    found: dict[str, Mapping[str, Tensor]] = {}
    for part in alike([list(state) for state in states], "the kind of state"):
        each: list[Any] = [state[part] for state in states]
        if part == "quantizer":
            found[part] = compressor.regrouped(each, regrouping)
        elif part == "residuals":
            found[part] = regrouping.numbered(each)
        elif part == "reduction":
            own = getattr(reduction, "regrouped", None)  # a user's own need not have it
            found[part] = own(each, regrouping) if own else alike(each, "what the reduction keeps")
        else:
            found[part] = alike(each, f"the state of {part}")
    return found


def check_exact(options: ExchangeOptions, skipped: Sequence[str], number: int) -> None:
    """Raise RegroupingError where sums in full precision, whose bits depend on the processes, are still to come.
    skipped: parameters that are not quantized. number: of the next exchange."""
    if options.trajectory == "full_precision":
        raise RegroupingError(f"exchange.trajectory: full_precision trains on {_SUMS}")
    if number < options.quantize_from:
        raise RegroupingError(f"before exchange.quantize_from: {options.quantize_from} it trains on {_SUMS}")
    if skipped:
        shown = ", ".join(skipped[:3]) + (f" and {len(skipped) - 3} more" if len(skipped) > 3 else "")
        raise RegroupingError(f"exchange.skip or skip_below leaves {shown} to {_SUMS}")


_SUMS = "sums in full precision, which are other bits in another number of processes"
