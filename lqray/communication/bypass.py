"""Is quantizing faster than not, here and now? Measured on the link itself before training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.distributed as dist

from lqray.communication import streams
from lqray.communication.hosts import Senders, senders_of
from lqray.communication.reduction import Reduction, load_reduction
from lqray.communication.wire.parcel import CheckWords, Parcel, decoded_parts, encoded_parts
from lqray.communication.wire.volume import Phase, Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor, Payload
from lqray.quantization.compressor import near_square

_REPEATS = 3
_MOST = 2**22


@dataclass(frozen=True)
class Decision:
    """bypass: exchange in full precision. The rest are seconds a step, of the slowest rank: encode and decode of the
    whole gradient, and its exchange as payloads and by an all-reduce."""

    bypass: bool
    encode_seconds: float
    decode_seconds: float
    exchange_seconds: float
    all_reduce_seconds: float

    def metrics(self) -> dict[str, float]:
        """As telemetry, `bypass/...`."""
        return {f"bypass/{name}": float(value) for name, value in asdict(self).items()}


def decide(
    compressor: Compressor,
    coordinates: int | Mapping[str, int],
    group: dist.ProcessGroup,
    device: torch.device,
    options: ExchangeOptions | None = None,
    workers: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Decision:
    """Measure on a random gradient of at most 4 million coordinates and scale to `coordinates`, those that would be
    quantized, or, of a compressor that has several numbers of bits, those of every parameter by its name. Collective;
    the same decision on all ranks.

    options: the exchange that is measured, with its reduction and its entropy coding; the default ones without.
    workers: of each process, which encodes the gradient of each, or, with `reduction: hierarchical`, of each host.
    dtype: of gradients, as an all-reduce moves them.
    """
    options = options or ExchangeOptions()
    sizes = dict(coordinates) if isinstance(coordinates, Mapping) else {"": coordinates}
    pieces = _pieces(compressor, sizes, device)
    n = sum(piece.numel() for _, piece in pieces)
    gradient = torch.randn(n, device=device).to(dtype)
    senders = senders_of(options, group, range(workers))
    reduction = _reduction(options, senders, device)
    sending = len(senders.seeds)
    parts = 1 if compressor.layers else reduction.parts(sending)

    def payloads() -> list[Payload]:
        return [payload for own, x in pieces for payload in encoded_parts(x, parts, own, seed=0, offset=0)]

    parcel = Parcel([payloads() for _ in range(sending)], [0] * sending, check=0, parts=parts)
    inside: list[Volume] = []

    def encode() -> None:
        for _ in range(sending):
            encoded = payloads()
            if options.error_feedback:
                decoded_parts(encoded, compressor)

    def reduce() -> None:
        inside.append(Volume())
        senders.take([[gradient]] * workers, inside[-1])
        reduction.reduce(parcel, compressor, inside[-1]).wait()

    steps: list[Callable[[], object]] = [encode, reduce, lambda: dist.all_reduce(gradient, group=group)]
    try:
        encoding, reducing, all_reducing = (_median_seconds(step, device, group) for step in steps)
    finally:
        reduction.close()
        senders.close(partial(streams.synchronize, device))
    # What a reduction encodes and decodes itself, without the first time, when much is made ready.
    phases: tuple[Phase, Phase] = ("encode", "decode")
    again, decoding = (statistics.median(each.seconds(phase) for each in inside[1:]) for phase in phases)
    moving = max(0.0, reducing - again - decoding)
    own = torch.tensor([encoding + again, decoding, moving, all_reducing], device=device)
    dist.all_reduce(own, op=dist.ReduceOp.MAX, group=group)
    seconds = [value * sum(sizes.values()) / n for value in own.tolist()]
    return Decision(sum(seconds[:3]) >= seconds[3], *seconds)


def _reduction(options: ExchangeOptions, senders: Senders, device: torch.device) -> Reduction:
    """That is measured: nothing of it is kept from one measurement to the next. Closes senders where there is none."""
    once = options.model_copy(update={"feedback_stages": "first"})
    try:
        return load_reduction(once, senders.group, CheckWords(), senders.inside)
    except BaseException:
        senders.close(partial(streams.synchronize, device))
        raise


def _pieces(
    compressor: Compressor, sizes: Mapping[str, int], device: torch.device
) -> list[tuple[Compressor, torch.Tensor]]:
    """Random gradients of the parameters of each compressor, together at most 4 million coordinates."""
    held: dict[int, tuple[Compressor, int]] = {}
    for name, size in sizes.items():
        own = compressor.of_parameter(name)
        held[own.number] = own, size + held.get(own.number, (own, 0))[1]
    share = min(1.0, _MOST / max(1, sum(sizes.values())))
    pieces = []
    for own, size in held.values() or [(compressor, 0)]:
        n = max(1, int(size * share))
        pieces.append((own, torch.randn(near_square(n) if compressor.layers else n, device=device)))
    return pieces


def _median_seconds(step: Callable[[], object], device: torch.device, group: dist.ProcessGroup) -> float:
    def once() -> float:
        dist.barrier(group=group)
        started = time.perf_counter()
        step()
        streams.synchronize(device)
        return time.perf_counter() - started

    once()
    return statistics.median(once() for _ in range(_REPEATS))
