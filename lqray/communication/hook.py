"""The torch DDP communication hook: gradient bucket -> payload -> reduction -> mean gradient.

No `from __future__ import annotations` here: DDP checks the hook's annotations at run time.
"""

import time

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lqray.communication.collectives import gather_now
from lqray.communication.reduction import load_reduction
from lqray.communication.volume import Volume
from lqray.quantization import BucketStatistics, Quantizer


class GradientExchange:
    """Exchanges a DDP model's gradients quantized. All ranks of `group` make one with equal arguments but `seed`.

    quantizer: encodes, and adapts its levels by `update_levels`. reduction: name of a module of communication/.
    seed: unsigned 64-bit, different on every rank, else the ranks' rounding errors would not average out.
    """

    def __init__(self, quantizer: Quantizer, reduction: str, group: dist.ProcessGroup, seed: int) -> None:
        self.quantizer = quantizer
        self.volume = Volume()
        self._reduction = load_reduction(reduction)
        self._group = group
        self._seed = seed
        self._iteration = 0
        self._sample = False
        self._measure = False
        self._error = 0.0
        self._energy = 0.0

    def attach(self, model: DistributedDataParallel) -> None:
        """Make `model` exchange its gradients through this object."""
        model.register_comm_hook(self, _hook)

    def begin_step(self, iteration: int, measure: bool = False) -> None:
        """Call before each backward pass. `measure`: also find the NMSE of this step's own payloads, at the cost of
        decoding them."""
        self.volume = Volume()
        self._iteration = iteration
        self._sample = self.quantizer.schedule.wants_sample(iteration, self.quantizer.samples)
        self._measure = measure
        self._error = self._energy = 0.0

    def exchange(self, gradient: Tensor, index: int) -> Future[Tensor]:
        """Start the exchange of tensor number `index` of this step: (n,) to a future of the mean over ranks, (n,)."""
        started = time.perf_counter()
        payload = self.quantizer.encode(gradient, seed=self._seed, offset=self._iteration << 20 | index)
        self.volume.coordinates += payload.n
        self.volume.encode_seconds += time.perf_counter() - started
        if self._sample:
            self.quantizer.observe(gradient)
        if self._measure:
            exact = gradient.to(torch.float64)
            self._error += float((self.quantizer.decode(payload).to(torch.float64) - exact).square().sum())
            self._energy += float(exact.square().sum())
        return self._reduction.reduce(payload, self.quantizer, self._group, self.volume)

    @property
    def nmse(self) -> float:
        """||Q(g) - g||^2 / ||g||^2 of this rank's gradient at the last measured step; 0 for a zero gradient."""
        return self._error / self._energy if self._energy else 0.0

    def update_levels(self) -> bool:
        """Fit the levels to all ranks' statistics when the schedule says so. Collective.

        Statistics are gathered, rank 0 solves, its levels are broadcast: all ranks end with the same bytes. Returns
        whether an update was due.
        """
        if not self.quantizer.schedule.is_due(self._iteration):
            return False
        rows = self._gather(self.quantizer.statistics.table())
        self.quantizer.update_levels(BucketStatistics.from_table(rows) if self._group.rank() == 0 else None)
        levels = torch.from_numpy(self.quantizer.exact_levels.copy()).to(self._device)
        dist.broadcast(levels, group=self._group, group_src=0)
        self.quantizer.set_levels(levels.cpu().numpy())
        return True

    def _gather(self, table: np.ndarray) -> np.ndarray:
        """Every rank's (K_rank, 4) rows, in the order of ranks. K may differ: zero buckets are dropped."""
        own = torch.from_numpy(table).to(self._device)
        lengths = gather_now(torch.tensor([len(table)], device=self._device), self._group)
        longest = max(1, int(lengths.max()))
        padded = torch.nn.functional.pad(own, (0, 0, 0, longest - len(table)))
        gathered = gather_now(padded, self._group).split(longest)
        parts = [part[: int(length)] for part, length in zip(gathered, lengths, strict=True)]
        return torch.cat(parts).cpu().numpy()

    @property
    def _device(self) -> torch.device:
        """Where collectives of this group want their tensors."""
        return torch.device("cuda") if dist.get_backend(self._group) == "nccl" else torch.device("cpu")


def _hook(state: GradientExchange, bucket: GradBucket) -> Future[Tensor]:
    return state.exchange(bucket.buffer(), bucket.index())
