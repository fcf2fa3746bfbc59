"""Top-k: the coordinates of largest magnitude travel, as values and indices (Aji and Heafield 2017). It loses at most
1 - k/n of the energy (Stich, Cordonnier and Jaggi 2018), and is meant for error feedback."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lqray.experiment.options.quantizer import TopKOptions
from lqray.quantization.codec import cast, flattened
from lqray.quantization.compressor import Compressor
from lqray.quantization.payload import Payload
from lqray.quantization.sparse import SparsePayload, index_bytes, kept, read_indices, read_values, write_indices


class TopK(Compressor):
    """The k = density n coordinates of largest magnitude; NaN counts as largest. Its payload: values, then indices."""

    deterministic = True
    options: TopKOptions

    def encode(self, tensor: Tensor, *, seed: int, offset: int) -> SparsePayload:
        """See `Compressor.encode`; no seed enters."""
        x = flattened("topk", tensor).to(torch.float32)
        n, values = x.numel(), getattr(torch, self.options.values)
        k = kept(n, self.options.density) if n else 0
        indices = x.abs().topk(k, sorted=False).indices.sort().values
        chosen = x[indices].to(values).view(torch.uint8)
        buffer = torch.cat([chosen, write_indices(indices, n)])
        return SparsePayload(buffer, n, tensor.dtype, offset, k, values, index_bytes(n, k))

    def decode(self, payload: Payload) -> Tensor:
        """See `Compressor.decode`."""
        payload.check()
        return self.decode_mean(payload.buffer[None], payload)

    def decode_mean(self, payloads: Tensor, like: Payload) -> Tensor:
        """See `Compressor.decode_mean`: at the cost of k coordinates for each payload."""
        like.check(payloads)
        assert isinstance(like, SparsePayload)
        total = torch.zeros(like.n, device=payloads.device)
        for row in payloads:
            indices = read_indices(row[like.k * like.values.itemsize :].contiguous(), like.n, like.k)
            total.index_add_(0, indices, read_values(row, like))
        return cast(total / len(payloads), like.dtype, like.offset)

    def rescaled(self, payload: Payload, corrected: Tensor, decoded: Tensor) -> Payload:
        """As it is: no factor brings the coordinates that are sent nearer."""
        return replace(payload)


METHOD = TopK
