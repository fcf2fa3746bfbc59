"""Random-k: k of n coordinates, the same on all workers, times n/k (Stich, Cordonnier and Jaggi 2018). Unbiased, of
variance (n/k - 1) |x|^2; linear, so that payloads are averaged as they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lqray.experiment.options.quantizer import RandomKOptions
from lqray.ops.reference import philox
from lqray.quantization.codec import cast, flattened
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import Payload, floats
from lqray.quantization.sparse import SparsePayload, kept

# Every rank draws the same coordinates: no rank's seed enters.
_DRAW_SEED = 0x72616E646B


class RandomK(Compressor):
    """One coordinate of each of k strata of n/k neighbours, times their number: every coordinate is as likely as in a
    draw of k among n, with the same mean and variance, at the cost of k. Its payload: k float32 values, and no indices,
    which follow from the offset."""

    unbiased = True
    linear = True
    options: RandomKOptions

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> SparsePayload:
        """See `Compressor.encode`; of seed and offset only the latter enters."""
        x = flattened("random_k", tensor)
        n = x.numel()
        k = kept(n, self.options.density) if n else 0
        indices, sizes = _draw(n, k, offset, x.device)
        values = x[indices].to(torch.float32) * sizes.to(torch.float32)
        return SparsePayload(values.view(torch.uint8), n, tensor.dtype, offset, k, torch.float32, 0)

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        payload.check()
        assert isinstance(payload, SparsePayload)
        decoded = torch.zeros(payload.n, device=payload.buffer.device)
        indices, _ = _draw(payload.n, payload.k, payload.offset, decoded.device)
        decoded[indices] = payload.read()
        return cast(decoded, payload.dtype, payload.offset)

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Compressor.decode_mean`: payloads are averaged, and decoded once."""
        return self.decode(self.mean_payload(payloads, like))

    def mean_payload(self, payloads: Tensor, like: Payload) -> Payload:
        """See `Compressor.mean_payload`."""
        like.check(payloads)
        values = floats(payloads)
        total = torch.zeros_like(values[0])
        for row in values:
            total += row
        return replace(like, buffer=(total / len(values)).view(torch.uint8))

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """Times k/n, which is 1 / (1 + omega): the coordinates as they are."""
        assert isinstance(payload, SparsePayload)
        _, sizes = _draw(payload.n, payload.k, payload.offset, payload.buffer.device)
        return replace(payload, buffer=(payload.read() / sizes.to(torch.float32)).view(torch.uint8))


def _draw(n: int, k: int, offset: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An index of each stratum, int64 (k,), ascending, and how many coordinates it was drawn from."""
    if not k:
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.int64, device=device)
    edges = torch.arange(k + 1, device=device) * (n // k) + torch.arange(k + 1, device=device) * (n % k) // k
    sizes = edges[1:] - edges[:-1]
    drawn = philox(torch.arange(k, device=device), _DRAW_SEED, offset)
    # 31 bits, as a product with a stratum of any size must stay within 63.
    within = (drawn[0] >> 1) * sizes >> 31
    return edges[:-1] + within, sizes


METHOD = RandomK
