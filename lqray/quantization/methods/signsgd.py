"""Scaled sign: one bit a coordinate and the mean magnitude of its bucket (Seide et al. 2014; Bernstein et al. 2018). It
loses 1 - |x|_1^2 / (d |x|_2^2) of a bucket's energy (Karimireddy et al. 2019), and is meant for error feedback."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lqray import ops
from lqray.experiment.options.quantizer import SignOptions
from lqray.quantization import codec
from lqray.quantization.codec import LevelPayload
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import Payload


class SignSgd(Compressor):
    """Its payload is that of one bit with the levels -1 and 1, where norms are mean magnitudes; zero has the sign of 1.
    A bucket with a NaN or an infinity in it decodes to NaN."""

    deterministic = True
    options: SignOptions

    def __init__(self, options: SignOptions) -> None:
        super().__init__(options)
        self._copies: dict[torch.device, Tensor] = {}

    @property
    def unit(self) -> int:
        """Whole buckets of whole groups of 32."""
        return math.lcm(self.options.bucket_size, 32)

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> LevelPayload:
        """See `Compressor.encode`; no seed enters."""
        x = codec.flattened("signsgd", tensor).to(torch.float32)
        n, size = x.numel(), self.options.bucket_size
        whole = n - n % size
        norms = [x[:whole].view(-1, size).abs().mean(dim=1), x[whole:].abs().mean()[None]]
        norm = torch.cat(norms if whole < n else norms[:1])
        norm = torch.where(norm.isfinite(), norm, torch.nan)
        codes = ops.pack((x >= 0).to(torch.uint8), 1) if n else torch.empty(0, dtype=torch.uint8, device=x.device)
        buffer = torch.cat([norm.view(torch.uint8), codes])
        return LevelPayload(buffer, n, tensor.dtype, offset, 1, size)

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        return codec.decode(_signs(payload), self._levels(payload.buffer.device))

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Compressor.decode_mean`; with `vote: majority` the sign that most payloads have, 0 where as many have
        the one as the other, times the mean of the norms."""
        like.check(payloads)
        own, levels, scale = _signs(like), self._levels(payloads.device), 1.0 / len(payloads)
        if self.options.vote == "mean":
            return codec.decode_sum(payloads, own, levels, scale)
        even = payloads.clone()
        ones = torch.ones(own.norm_bytes // 4, device=payloads.device)
        even[:, : own.norm_bytes] = ones.view(torch.uint8)
        of_all = replace(own, dtype=torch.float32)
        vote = codec.decode_sum(even, of_all, levels, scale).sign()
        # What a coordinate's bucket has as its mean norm: the mean of payloads of ones.
        every = payloads.clone()
        every[:, own.norm_bytes :] = 255
        size = codec.decode_sum(every, of_all, levels, scale)
        return codec.cast(vote * size, like.dtype, like.offset)

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """As it is: the mean magnitude is the factor that brings signs nearest."""
        return payload

    def tensors_on(self, device: torch.device) -> list[Tensor]:
        """See `Compressor.tensors_on`: the levels -1 and 1."""
        return [self._levels(device)]

    def _levels(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = torch.tensor([-1.0, 1.0], device=device)
        return self._copies[device]


def _signs(payload: Payload) -> LevelPayload:
    assert isinstance(payload, LevelPayload)
    return payload


METHOD = SignSgd
