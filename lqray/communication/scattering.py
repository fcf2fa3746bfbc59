"""Each rank gets the mean of its own part of a tensor, from everybody's payload of that part."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from lqray.communication import streams
from lqray.communication.wire.parcel import CHECK_BYTES, CheckWords, Parcel, check_of
from lqray.communication.wire.volume import Volume
from lqray.quantization import Compressor
from lqray.quantization.place import Place

_PART_SHIFT = 20


def start_reduce_scatter(
    parts: Tensor,
    compressor: Compressor,
    group: dist.ProcessGroup,
    seed: int,
    call: int,
    volume: Volume,
    checks: CheckWords,
    place: Place,
) -> Callable[[], Tensor]:
    """Send every rank r of `group` the codes of parts[r], of parts (W, n). What is returned waits for those of this
    rank's part and decodes their mean over all ranks: (n,). seed: of this rank. call: below 2**32, equal on all ranks,
    of which each has noise of its own. `checks` compares whether all mean the same levels and the same call.
    place: of this rank among those of `group`."""
    first = call << _PART_SHIFT
    with volume.timed("encode", parts.device):
        payloads = [
            compressor.encode_at(part, place, seed=seed, offset=first | rank)
            for rank, part in enumerate(parts.unbind())
        ]
    like = payloads[group.rank()]
    check = Parcel([[like]], [seed], check_of(compressor.fingerprint(), first, place.seed)).check_word()
    sent = torch.cat([piece for payload in payloads for piece in (payload.buffer, check)])
    rows = sent.new_empty((group.size(), like.nbytes + CHECK_BYTES))
    work = dist.all_to_all_single(rows.view(-1), sent, group=group, async_op=True)
    others = (group.size() - 1) * rows.shape[1]
    volume.coordinates += parts.numel()
    volume.payload_bytes += sent.numel()
    volume.moved(others, others)

    def mean() -> Tensor:
        work.wait()
        streams.used_here(sent, rows)
        checks.compare(rows[:, -CHECK_BYTES:], 1)
        with volume.timed("decode", rows.device):
            return compressor.decode_mean(rows[:, :-CHECK_BYTES].contiguous(), like)

    return mean
