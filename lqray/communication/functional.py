"""Quantized collectives on any tensor, called as torch.distributed's own: `quantized_all_reduce(tensor, "alq")`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lqray.communication import streams
from lqray.communication.exchange import GradientExchange
from lqray.communication.keywords import compressor_and_options, exchange_options, refuse_layers
from lqray.communication.level_update import update_levels
from lqray.communication.scattering import start_reduce_scatter
from lqray.communication.wire.collectives import gather_now
from lqray.communication.wire.parcel import CheckWords
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Compressor, create
from lqray.quantization.place import Place

Operation = Literal["mean", "sum"] | dist.ReduceOp | dist.ReduceOp.RedOpType

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OWN_OPTIONS = ("reduction", "gather_bits", "rounding")
_calls: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()


class PendingResult:
    """A collective under way, as torch's `Work`. volume: the bytes that it moves, complete after `wait`."""

    def __init__(self, finish: Callable[[], None], volume: Volume) -> None:
        self.volume = volume
        self._finish: Callable[[], None] | None = finish

    def wait(self) -> None:
        """Wait for the other ranks and write the result. All ranks wait for their collectives in the same order. Raises
        LevelsDifferError where ranks' levels or calls differ."""
        finish, self._finish = self._finish, None
        if finish:
            finish()

    def is_completed(self) -> bool:
        """Whether the result has been written, which only `wait` does."""
        return self._finish is None


def quantized_all_reduce(
    tensor: Tensor,
    method: str | Compressor,
    *,
    op: Operation = "mean",
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    seed: int | None = None,
    fit: bool | None = None,
    **options: Any,
) -> PendingResult | None:
    """Replace `tensor` on every rank by the mean (or sum) over the ranks of `group`, exchanged quantized: the same bits
    on all of them, and unbiased but for methods that clip. Collective.

    tensor: float32, float16 or bfloat16, of any shape and strides, equal on all ranks. method: a name, with the
    method's `options` (bits, bucket_size, ...), or a Quantizer, whose levels then serve call after call. op: "mean",
    "sum", or torch's ReduceOp.AVG and SUM. async_op: return at once with a PendingResult; the result is in `tensor`
    after its `wait()`. seed: of the rounding noise, another one for every call; by default calls in a group are
    counted. fit: first fit levels that adapt to what all ranks have, for which it waits; by default where they never
    were: at every call with a name, at the first with a Quantizer. reduction, gather_bits, rounding: as of the exchange
    (docs/guide/exchange.md); with scatter_reduce `wait` does the second half.

    Raises TypeError, ValueError for arguments that are not allowed; LevelsDifferError where ranks' levels or calls
    differ.
    """
    flat = _flattened(tensor, "quantized_all_reduce")
    chosen, factor = _group_of(group), _factor(op, group)
    compressor, exchanged = _quantizer(method, options, "quantized_all_reduce")
    if exchanged.reduction == "hierarchical":
        raise ValueError(
            "quantized_all_reduce: reduction='hierarchical' needs process groups that every call would make anew; "
            "allowed: all_gather, scatter_reduce, or one call after the other: torch's all_reduce over the ranks of a "
            "host, then quantized_all_reduce over a group of one rank, or of the ranks of one place, of every host"
        )
    if not flat.numel():
        return PendingResult(lambda: None, Volume()) if async_op else None
    call, own_seed, place = _numbered(chosen, seed, exchanged)
    _fit(compressor, flat, chosen, fit)
    start = _start_scatter_reduce if exchanged.reduction == "scatter_reduce" else _start_exchange
    finish, volume = start(flat, compressor, exchanged, chosen, call, own_seed, place)
    return _result(lambda: _write(tensor, finish(), factor), volume, async_op)


def quantized_reduce_scatter(
    output: Tensor,
    input: Tensor,
    method: str | Compressor,
    *,
    op: Operation = "mean",
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    seed: int | None = None,
    fit: bool | None = None,
    **options: Any,
) -> PendingResult | None:
    """Write to `output` this rank's share of the mean (or sum) of `input` over the ranks of `group`, exchanged
    quantized. Collective.

    input: of W times as many coordinates as output, W the ranks; rank r gets the r-th of W equal parts of it. Each part
    starts quantization buckets of its own. Else as `quantized_all_reduce`, which also says what is raised.
    """
    flat = _flattened(input, "quantized_reduce_scatter")
    chosen, factor = _group_of(group), _factor(op, group)
    world = chosen.size()
    if output.numel() * world != flat.numel() or output.dtype != flat.dtype:
        raise ValueError(
            f"quantized_reduce_scatter: output has {output.numel()} coordinates of {output.dtype}, input "
            f"{flat.numel()} of {flat.dtype}, over {world} ranks; allowed: input of the same dtype with {world} times "
            "as many coordinates as output"
        )
    compressor, exchanged = _quantizer(method, options, "quantized_reduce_scatter", ("rounding",))
    if not flat.numel():
        return PendingResult(lambda: None, Volume()) if async_op else None
    call, own_seed, place = _numbered(chosen, seed, exchanged)
    _fit(compressor, flat, chosen, fit)
    volume, checks = Volume(), CheckWords()
    parts = flat.view(world, -1)
    mean = start_reduce_scatter(parts, compressor, chosen, own_seed, call, volume, checks, place)

    def finish() -> None:
        _write(output, mean(), factor)
        checks.raise_all()

    return _result(finish, volume, async_op)


def _start_exchange(
    flat: Tensor,
    compressor: Compressor,
    options: ExchangeOptions,
    group: dist.ProcessGroup,
    call: int,
    seed: int,
    place: Place,
) -> tuple[Callable[[], Tensor], Volume]:
    exchange = GradientExchange(compressor, options, group, [seed], place.seed)
    exchange.begin_step(call)
    mean = exchange.exchange([flat], 0)

    def finish() -> Tensor:
        value = mean.wait()
        exchange.finish()
        exchange.close()
        return value

    return finish, exchange.volume


def _start_scatter_reduce(
    flat: Tensor,
    compressor: Compressor,
    options: ExchangeOptions,
    group: dist.ProcessGroup,
    call: int,
    seed: int,
    place: Place,
) -> tuple[Callable[[], Tensor], Volume]:
    """As reductions/scatter_reduce.py, without a thread and process groups of its own."""
    volume, checks, n = Volume(), CheckWords(), flat.numel()
    parts = torch.nn.functional.pad(flat, (0, -n % group.size())).view(group.size(), -1)
    own_mean = start_reduce_scatter(parts, compressor, group, seed, call, volume, checks, place)
    wide = create("qsgd_inf", bits=options.gather_bits, bucket_size=getattr(compressor.options, "bucket_size", 8192))

    def finish() -> Tensor:
        payload = wide.encode(own_mean(), seed=derive_seed(seed, "second rounding"), offset=call)
        rows = gather_now(payload.buffer.view(1, -1), group)
        others = (group.size() - 1) * payload.nbytes
        volume.payload_bytes += payload.nbytes
        volume.moved(others, others)
        checks.raise_all()
        return torch.cat([wide.decode_mean(row.view(1, -1), payload) for row in rows])[:n]

    return finish, volume


def _write(output: Tensor, mean: Tensor, factor: int) -> None:
    with torch.no_grad():
        output.copy_((mean * factor if factor != 1 else mean).view(output.shape))


def _result(finish: Callable[[], None], volume: Volume, async_op: bool) -> PendingResult | None:
    pending = PendingResult(finish, volume)
    if async_op:
        return pending
    pending.wait()
    return None


def _fit(compressor: Compressor, flat: Tensor, group: dist.ProcessGroup, fit: bool | None) -> None:
    if not compressor.adapts or not (not compressor.fitted if fit is None else fit):  # zeros fit nothing
        return
    compressor.observe(flat)
    update_levels(compressor, group, streams.device_of(group))


def _numbered(group: dist.ProcessGroup, seed: int | None, options: ExchangeOptions) -> tuple[int, int, Place]:
    """(number of this call, seed of this rank, its place with the seed of all ranks): noise is a function of these."""
    number = 0
    if seed is None:
        number = _calls.get(group, 0)
        _calls[group] = number + 1
    purpose = "collective", "counted" if seed is None else "given"
    own, shared = (derive_seed(seed or 0, *purpose, whose) for whose in (group.rank(), "shared"))
    return number, own, Place(group.rank(), group.size(), correlated=options.rounding == "correlated", seed=shared)


def _quantizer(
    method: str | Compressor, options: dict[str, Any], caller: str, own: tuple[str, ...] = _OWN_OPTIONS
) -> tuple[Compressor, ExchangeOptions]:
    if isinstance(method, str):
        compressor, exchanged = compressor_and_options(method, options, caller, own)
        refuse_layers(compressor, caller)
        return compressor, exchanged
    if not isinstance(method, Compressor):
        raise TypeError(
            f"{caller}: method is a {type(method).__name__}; allowed: the name of a method, or a quantizer of "
            "lqray.Quantizer.create"
        )
    if beside := sorted(set(options) - set(own)):
        raise ValueError(
            f"{caller}: {', '.join(beside)} beside a quantizer; give a method's options to lqray.Quantizer.create"
        )
    refuse_layers(method, caller)
    return method, exchange_options(options, caller)


def _flattened(tensor: Tensor, caller: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{caller} was given a {type(tensor).__name__}; allowed: a torch.Tensor")
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{caller}: a tensor of {tensor.dtype}, {tensor.layout}; allowed: dense ones of float32, float16 or "
            "bfloat16 (`tensor.float()`, `tensor.to_dense()`)"
        )
    return tensor.detach().reshape(-1)


def _group_of(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    chosen = dist.group.WORLD if group is None else group
    if chosen is None:
        raise ValueError("there is no process group; call torch.distributed.init_process_group first")
    if not isinstance(chosen, dist.ProcessGroup):  # what new_group returns elsewhere
        raise ValueError("this rank is not of the group; allowed: a call on every rank of it, and on no other")
    return chosen


def _factor(op: Operation, group: dist.ProcessGroup | None) -> int:
    """What the mean is multiplied by."""
    if op in ("mean", dist.ReduceOp.AVG):
        return 1
    if op in ("sum", dist.ReduceOp.SUM):
        return _group_of(group).size()
    raise ValueError(f"op={op!r}; allowed: 'mean', 'sum', ReduceOp.AVG or ReduceOp.SUM")
