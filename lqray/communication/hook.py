"""The torch DDP communication hook: gradient bucket -> payload -> reduction -> mean gradient.

No `from __future__ import annotations` here: DDP checks the hook's annotations at run time.
"""

import json
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lqray.communication.collectives import gather_now
from lqray.communication.reduction import load_reduction
from lqray.communication.replicas import check_agreement
from lqray.communication.volume import Volume
from lqray.experiment.options import ExchangeOptions
from lqray.quantization import Payload, Quantizer

# A tensor's offset: 20 bits of DDP bucket, 32 of iteration, 11 of layer within it; the highest is a reduction's own.
_ITERATION_SHIFT, _LAYER_SHIFT, _MOST_LAYERS = 20, 52, 2**11


class GradientExchange:
    """Exchanges a DDP model's gradients quantized. All ranks of `group` make one with equal arguments but `seed`.

    quantizer: encodes, and adapts its levels by `update_levels`. options: which reduction, and
    where quantization buckets start. seed: unsigned 64-bit, different on every rank, else the ranks' rounding errors
    would not average out.
    """

    def __init__(self, quantizer: Quantizer, options: ExchangeOptions, group: dist.ProcessGroup, seed: int) -> None:
        self.quantizer = quantizer
        self.volume = Volume()
        self._options = options
        self._reduction = load_reduction(options)
        self._group = group
        self._seed = seed
        self._by_layer = options.buckets == "layer"
        self._iteration = 0
        self._sample = False
        self._measure = False
        self._error = self._energy = self._bias = 0.0
        self._entropy_bits = self._huffman_bits = 0.0

    def attach(self, model: DistributedDataParallel) -> None:
        """Make `model` exchange its gradients through this object. Collective: raises RanksDisagreeError where ranks
        would misread each other's payloads, or round alike."""
        agreed = {
            "quantizer": self.quantizer.options.model_dump(),
            "exchange": self._options.model_dump(),
            "levels": self.quantizer.levels.tolist(),
        }
        check_agreement(json.dumps(agreed), self._seed, self._group, self._device)
        model.register_comm_hook(self, _hook)

    def begin_step(self, iteration: int, measure: bool = False) -> None:
        """Call before each backward pass. `measure`: also find the NMSE of this step's own payloads, at the cost of
        decoding them."""
        self.volume = Volume()
        self._iteration = iteration
        wanted = self.quantizer.schedule.wants_sample(iteration, self.quantizer.samples)
        self._sample = wanted and not self.quantizer.fresh_samples
        self._measure = measure
        self._error = self._energy = self._bias = 0.0
        self._entropy_bits = self._huffman_bits = 0.0

    def exchange(self, gradient: Tensor, index: int) -> Future[Tensor]:
        """Start the exchange of tensor number `index` of this step: (n,) to a future of the mean over ranks, (n,)."""
        started = time.perf_counter()
        offset = self._iteration << _ITERATION_SHIFT | index
        payload = self.quantizer.encode(gradient, seed=self._seed, offset=offset)
        self.volume.coordinates += payload.n
        self.volume.encode_seconds += time.perf_counter() - started
        if self._sample:
            self.quantizer.observe(gradient)
        if self._measure:
            self._measure_payload(gradient, payload)
        return self._reduction.reduce(payload, self.quantizer, self._group, self.volume, self._seed, offset)

    @property
    def nmse(self) -> float:
        """||Q(g) - g||^2 / ||g||^2 of this rank's gradient at the last measured step; 0 for a zero gradient."""
        return self._error / self._energy if self._energy else 0.0

    @property
    def bias(self) -> float:
        """||E[Q(g)] - g|| / ||g|| of this rank's gradient at the last measured step: 0 for unbiased methods."""
        return math.sqrt(self._bias / self._energy) if self._energy else 0.0

    @property
    def entropy_bits(self) -> float:
        """Entropy of this rank's codes at the last measured step, bits per coordinate."""
        return self._entropy_bits / self.volume.coordinates if self.volume.coordinates else 0.0

    @property
    def huffman_bits(self) -> float:
        """Length of this rank's codes at the last measured step in Huffman codes of their own, bits per coordinate."""
        return self._huffman_bits / self.volume.coordinates if self.volume.coordinates else 0.0

    def fresh_samples(self, iteration: int) -> int:
        """Extra gradients to `observe` after this iteration's backward pass, before `update_levels`."""
        wanted = self.quantizer.fresh_samples and self.quantizer.schedule.is_due(iteration)
        return self.quantizer.samples if wanted else 0

    def observe(self, gradients: Sequence[Tensor]) -> None:
        """Add an extra gradient of the whole model, a tensor for each parameter, to what the next update fits to."""
        if self._by_layer:
            for gradient in gradients:
                self.quantizer.observe(gradient)
        else:
            self.quantizer.observe(torch.cat([gradient.reshape(-1) for gradient in gradients]))

    def update_levels(self) -> bool:
        """Fit the levels to all ranks' statistics when the schedule says so. Collective.

        Statistics are gathered, rank 0 solves, its levels are broadcast: all ranks end with the same bytes. Returns
        whether an update was due.
        """
        if not self.quantizer.schedule.is_due(self._iteration):
            return False
        rows = self._gather(self.quantizer.statistics.table())
        assert self.quantizer.method.fit is not None
        of_all = self.quantizer.method.fit.statistics.from_table(rows)
        self.quantizer.update_levels(of_all if self._group.rank() == 0 else None)
        levels = torch.from_numpy(self.quantizer.exact_levels.copy()).to(self._device)
        dist.broadcast(levels, group=self._group, group_src=0)
        self.quantizer.set_levels(levels.cpu().numpy())
        return True

    def exchange_bucket(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the exchange of a DDP bucket, as one tensor or layer by layer."""
        if not self._by_layer:
            return self.exchange(bucket.buffer(), bucket.index())
        gradients = bucket.gradients()
        if len(gradients) > _MOST_LAYERS:
            raise ValueError(
                f"a DDP bucket holds {len(gradients)} layers; allowed with exchange.buckets: layer: {_MOST_LAYERS}. "
                "Lower exchange.bucket_cap_mb"
            )
        layers = [
            self.exchange(layer.reshape(-1), bucket.index() | j << _LAYER_SHIFT) for j, layer in enumerate(gradients)
        ]
        return torch.futures.collect_all(layers).then(lambda done: torch.cat([one.value() for one in done.value()]))

    def _measure_payload(self, gradient: Tensor, payload: Payload) -> None:
        exact = gradient.to(torch.float64)
        energy = float(exact.square().sum())
        self._error += float((self.quantizer.decode(payload).to(torch.float64) - exact).square().sum())
        self._energy += energy
        self._bias += self.quantizer.bias(gradient) ** 2 * energy
        self._entropy_bits += payload.entropy_bits() * payload.n
        self._huffman_bits += payload.huffman_bits() * payload.n

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
    return state.exchange_bucket(bucket)
