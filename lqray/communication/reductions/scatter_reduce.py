"""Encoded scatter-reduce: each worker averages its share of the coordinates and sends the mean back, encoded again.

1. All-to-all: tensors are cut into as many parts as there are workers before they are encoded. Every worker gets
   everybody's payloads of its share of them, about 1/K, decodes and averages them.
2. All-gather: it encodes the mean with uniform levels of `gather_bits` and linf norms; everybody decodes all shares.
   Means of a linear compressor travel as its own payloads, without a second rounding.

2 (W - 1) / W payloads move for each rank, whatever W; all_gather moves W - 1. The second rounding is not averaged,
hence its wider codes. Both run beside the backward pass, step by step, each in a stage of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication.memory import ErrorMemory
from lqray.communication.wire.parcel import CHECK_BYTES, CheckWords, Parcel
from lqray.communication.wire.stage import Stage
from lqray.communication.wire.transport import Rows, load_transport
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor, Payload, Quantizer, create
from lqray.quantization.codec import cast
from lqray.quantization.payload import CodePlanes
from lqray.quantization.regrouping import Regrouping, RegroupingError

# The upper half of the counter space, which no first encoding uses.
_SECOND_ROUNDING = 1 << 63


class ScatterReduce:
    """See the module. Results are equal to the bit on all ranks: they decode the same bytes."""

    def __init__(self, options: ExchangeOptions, group: dist.ProcessGroup, checks: CheckWords) -> None:
        self._options = options
        self._transport = load_transport(options)
        self._checks = checks
        self._coder: Quantizer | None = None
        fed_back = bool(options.error_feedback) and options.feedback_stages == "both"
        self._memory = ErrorMemory.of(options) if fed_back else None
        coded = options.entropy != "none"
        self._world = group.size()
        self._scatter = Stage(group, host_waits=coded)
        try:
            self._gather = Stage(group, host_waits=coded)
        except BaseException:
            self._scatter.close()
            raise

    def parts(self, workers: int) -> int:
        """See `lqray.communication.reduction.Reduction.parts`: one for each worker."""
        return self._world * workers

    def reduce(self, parcel: Parcel, compressor: Compressor, volume: Volume) -> Future[list[Tensor]]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        device = parcel.device
        coder = self._coder_of(compressor)
        likes = [_mean_like(like, compressor, coder) for like in parcel.likes]
        sent = [payload.buffer for payloads in parcel.payloads for payload in payloads]
        uses = [*compressor.tensors_on(device), *coder.tensors_on(device)]
        means = self._scatter.submit(
            device, lambda: self._own_means(parcel, likes, compressor, coder, volume), [*sent, *uses]
        )
        return self._gather.submit(
            device, lambda: self._all_means(means.wait(), parcel, likes, compressor, coder, volume), uses
        )

    def close(self) -> None:
        """See `lqray.communication.reduction.Reduction.close`."""
        self._scatter.close()
        self._gather.close()

    def state_dict(self) -> dict[str, Tensor]:
        """See `lqray.communication.reduction.Reduction.state_dict`: what the second rounding lost, where it is fed
        back."""
        return self._memory.state_dict() if self._memory else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `lqray.communication.reduction.Reduction.load_state_dict`."""
        if self._memory:
            self._memory.load_state_dict(state)

    def regrouped(self, states: Sequence[Mapping[str, Tensor]], regrouping: Regrouping) -> dict[str, Tensor]:
        """What the workers that are here now kept. Raises RegroupingError for what an earlier version wrote."""
        everything = {key: value for state in states for key, value in state.items()}
        if any(not key.partition("/")[0].isdigit() for key in everything):
            raise RegroupingError("of what scatter_reduce lost of means, an earlier version did not say whose it is")
        return {key: value for key, value in everything.items() if int(key.partition("/")[0]) in regrouping.here}

    def _coder_of(self, compressor: Compressor) -> Quantizer:
        """What encodes means: in the compressor's own buckets, if it has any."""
        if self._coder is None:
            own = compressor.options
            shape: dict[str, Any] = {key: getattr(own, key) for key in ("bucket_size", "tail") if hasattr(own, key)}
            coder = create("qsgd_inf", bits=self._options.gather_bits, **shape)
            assert isinstance(coder, Quantizer)
            self._coder = coder
        return self._coder

    def _own_means(
        self,
        parcel: Parcel,
        likes: Sequence[Payload],
        compressor: Compressor,
        coder: Quantizer,
        volume: Volume,
    ) -> Tensor:
        """Rows of the means of the shares that this process's workers own, encoded: (workers, bytes)."""
        group, device, workers = self._scatter.group, parcel.device, len(parcel.payloads)
        owned = _owned(parcel, group.size() * workers)
        to = []
        for rank in range(group.size()):
            numbers = [number for worker in owned[rank * workers : (rank + 1) * workers] for number in worker]
            rows = torch.stack([_row([payloads[number] for number in numbers], device) for payloads in parcel.payloads])
            to.append(Rows(rows, _planes(parcel.likes[number] for number in numbers)))
        with volume.timed("exchange", device):
            received = self._transport.scatter(to, group, volume)

        longest = max(sum(likes[number].expected_bytes for number in numbers) for numbers in owned)
        own_rows, begin = [], 0
        first = group.rank() * workers
        for owner, (numbers, seed) in enumerate(zip(owned[first : first + workers], parcel.seeds, strict=True), first):
            parts = []
            for number in numbers:
                like = parcel.likes[number]
                payloads, begin = received[:, begin : begin + like.nbytes], begin + like.nbytes
                at = parcel, compressor, coder, seed, volume, owner
                parts.append(self._encoded_mean(payloads, number, *at).buffer)
            padding = longest - sum(part.numel() for part in parts)
            own_rows.append(torch.cat([*parts, received.new_zeros(padding), parcel.check_word()]))
        return torch.stack(own_rows)

    def _encoded_mean(
        self,
        payloads: Tensor,
        number: int,
        parcel: Parcel,
        compressor: Compressor,
        coder: Quantizer,
        seed: int,
        volume: Volume,
        owner: int,
    ) -> Payload:
        """Of all workers' payloads (K, bytes) of a part: their mean, encoded anew or as it is. Where DDP lays out its
        buckets anew, a part comes to another owner, who begins without an error, also one of the same process."""
        like = parcel.likes[number]
        with volume.timed("decode", payloads.device):
            if compressor.linear:
                return compressor.mean_payload(payloads, like)
            mean = compressor.decode_mean(payloads, replace(like, dtype=torch.float32))
        with volume.timed("encode", payloads.device):
            key = [(f"{owner}/{parcel.names[number]}", like.n)] if self._memory else []
            if self._memory:
                self._memory.rename(parcel.names[number], key[0][0])
                self._memory.begin_step(parcel.iteration)
                mean = self._memory.added_to(mean, key)
            encoded = coder.encode(mean, seed=seed, offset=like.offset | _SECOND_ROUNDING)
            if self._memory:
                self._memory.keep(mean, coder.decode(encoded), key)
            return encoded

    def _all_means(
        self,
        own: Tensor,
        parcel: Parcel,
        likes: Sequence[Payload],
        compressor: Compressor,
        coder: Quantizer,
        volume: Volume,
    ) -> list[Tensor]:
        """The mean of every payload's tensor, of the encoded means of all shares."""
        group, device, workers = self._gather.group, parcel.device, len(parcel.payloads)
        owned = _owned(parcel, group.size() * workers)
        planes = [_planes(likes[number] for number in numbers) for numbers in owned]
        with volume.timed("exchange", device):
            rows = self._transport.gather(own, planes, group, volume)
        self._checks.compare(rows[:, -CHECK_BYTES:], workers)
        decoder = compressor if compressor.linear else coder
        means: list[Tensor] = [rows.new_empty(0)] * len(likes)
        with volume.timed("decode", device):
            for row, numbers in zip(rows, owned, strict=True):
                begin = 0
                for number in numbers:
                    like = likes[number]
                    buffer, begin = row[begin : begin + like.expected_bytes], begin + like.expected_bytes
                    decoded = decoder.decode(replace(like, buffer=buffer, dtype=torch.float32))
                    means[number] = cast(decoded, parcel.likes[number].dtype, like.offset)
        return means


def _owned(parcel: Parcel, workers: int) -> list[list[int]]:
    """The payloads, by their numbers, that each of all workers averages. Which part of a tensor a worker owns turns
    with the tensor, so that small ones, which only the last part has anything of, do not all go to one worker."""
    owned: list[list[int]] = [[] for _ in range(workers)]
    for number in range(len(parcel.likes)):
        owned[(number // parcel.parts + number % parcel.parts) % workers].append(number)
    return owned


def _mean_like(like: Payload, compressor: Compressor, coder: Quantizer) -> Payload:
    """The mean of a payload's tensor as it travels, but for its bytes."""
    return like if compressor.linear else coder.template(like.n, like.offset)


def _row(payloads: Sequence[Payload], device: torch.device) -> Tensor:
    none = torch.empty(0, dtype=torch.uint8, device=device)
    return torch.cat([none, *(payload.buffer for payload in payloads)])


def _planes(payloads: Iterable[Payload]) -> list[CodePlanes]:
    """Where codes lie in a row of these."""
    found: list[CodePlanes] = []
    begin = 0
    for payload in payloads:
        found += [replace(planes, begin=begin + planes.begin) for planes in payload.planes()]
        begin += payload.expected_bytes
    return found


REDUCTION = ScatterReduce
