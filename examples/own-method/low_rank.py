"""Low-rank approximation of every layer's gradient, by one subspace iteration: a compressor that knows no levels."""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, Field

from lqray.quantization import Compressor, Payload


class Options(BaseModel):
    """What stands below `quantizer.options` in the YAML."""

    rank: int = Field(default=2, ge=1)


@dataclass(frozen=True)
class Factors(Payload):
    """float32 factors (rows, rank) and (rank, columns), one after the other; or, with rank 0, the tensor itself."""

    rows: int
    rank: int

    @property
    def expected_bytes(self):
        return 4 * (self.rank * (self.rows + self.n // max(1, self.rows)) if self.rank else self.n)


class LowRank(Compressor):
    """M is sent as P (P^T M), P an orthonormal basis of the columns of M R, R random but the same everywhere."""

    OPTIONS = Options
    layers = True  # tensors come in the shapes of their layers
    deterministic = True

    def encode(self, tensor, *, seed, offset):
        n = tensor.numel()
        matrix = tensor.detach().to(torch.float32).reshape(tensor.shape[0], -1) if n else tensor.reshape(0, 0)
        rows, columns = matrix.shape
        rank = self.options.rank if self.options.rank * (rows + columns) < n else 0
        parts = [matrix.reshape(-1)]
        if rank:
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(columns, rank, generator=generator).to(matrix.device)
            basis = torch.linalg.qr(torch.nan_to_num(matrix @ start)).Q
            parts = [basis.reshape(-1), (basis.T @ matrix).reshape(-1)]
        buffer = torch.cat(parts).to(torch.float32).view(torch.uint8)
        return Factors(buffer, n, tensor.dtype, offset, rows, rank)

    def decode(self, payload):
        payload.check()
        values = payload.buffer.clone().view(torch.float32)
        if payload.rank:
            size = payload.rows * payload.rank
            basis, rest = values[:size].view(payload.rows, -1), values[size:].view(payload.rank, -1)
            values = (basis @ rest).reshape(-1)
        return values.to(payload.dtype)


METHOD = LowRank
