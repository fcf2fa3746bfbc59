"""What a PyTorch user would pick instead: torch's own DDP communication hooks, with their bytes counted.

fp16, bf16: gradients cast, averaged by all-reduce, cast back. powersgd: low-rank approximation with error feedback
(Vogels et al., NeurIPS 2019), in full precision for its first iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lqray.communication.bucket import Bucket, refuse_sparse
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.options.quantizer import PowerSgdOptions, QuantizerOptions

Hook = Callable[[Any, Any], Future[Tensor]]


class Baseline:
    """One of torch's hooks on a DDP model. `volume` is that of the current step, of a ring all-reduce: seconds are not
    known, DDP overlaps and hides them."""

    def __init__(self, options: QuantizerOptions, group: dist.ProcessGroup) -> None:
        self.volume = Volume()
        self._group = group
        self._state: Any = group
        if isinstance(options, PowerSgdOptions):
            self._state = powerSGD_hook.PowerSGDState(
                group,
                matrix_approximation_rank=options.rank,
                start_powerSGD_iter=options.start_iteration,
                random_seed=0,
            )
            self._hook: Hook = powerSGD_hook.powerSGD_hook
        else:
            self._hook = _CASTS[options.method]

    def attach(self, model: DistributedDataParallel) -> None:
        """Make `model` exchange its gradients through torch's hook. Raises as `prepare`."""
        self.prepare(model.module)
        model.register_comm_hook(self, _counted)

    def prepare(self, module: nn.Module) -> None:
        """Check a module, whose buckets `exchange` may then take without DDP. Raises ValueError for sparse gradients
        with PowerSGD, and over gloo for those of several dtypes."""
        if isinstance(self._state, powerSGD_hook.PowerSGDState):
            refuse_sparse(module)
            _refuse_several_buckets(module, self._group)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the next bucket has to wait until this one's mean is there: PowerSGD starts further collectives from
        threads, and other ranks might start theirs in another order."""
        return isinstance(self._state, powerSGD_hook.PowerSGDState)

    def begin_step(self) -> None:
        """Call before each backward pass."""
        self.volume = Volume()

    def state_dict(self) -> dict[str, Any]:
        """All that decides this process's next exchange: nothing but for PowerSGD, whose errors, factors, iteration and
        random state are tensors and numbers."""
        if not isinstance(self._state, powerSGD_hook.PowerSGDState):
            return {}
        _, key, position, has_gauss, gauss = cast(tuple[Any, ...], self._state.rng.get_state())
        return {
            "iteration": self._state.iter,
            **{name: dict(getattr(self._state, name)) for name in _POWERSGD_TENSORS},
            "random": {"key": torch.from_numpy(key.astype("int64")), "rest": [position, has_gauss, gauss]},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if not isinstance(self._state, powerSGD_hook.PowerSGDState):
            return
        self._state.iter = state["iteration"]
        for name in _POWERSGD_TENSORS:
            setattr(self._state, name, dict(state[name]))
        key = state["random"]["key"].cpu().numpy().astype("uint32")
        self._state.rng.set_state(("MT19937", key, *state["random"]["rest"]))

    def exchange(self, bucket: Bucket) -> Future[Tensor]:
        """Start the exchange of a bucket and count its bytes."""
        n, width = bucket.buffer().numel(), bucket.buffer().element_size()
        if isinstance(self._state, powerSGD_hook.PowerSGDState):
            compressed = self._state.iter >= self._state.start_powerSGD_iter
            before = self._state.total_numel_after_compression
            done = self._hook(self._state, bucket)
            sent = (self._state.total_numel_after_compression - before if compressed else n) * width
        else:
            done = self._hook(self._state, bucket)
            sent = 2 * n
        self.volume.coordinates += n
        self.volume.all_reduced(sent, self._group.size())
        return done


_POWERSGD_TENSORS = ("error_dict", "p_memory_dict", "q_memory_dict")
_CASTS: dict[str, Hook] = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}


def is_baseline(options: QuantizerOptions) -> bool:
    """Whether a method is one of torch's own."""
    return options.method in _CASTS or isinstance(options, PowerSgdOptions)


def bucket_cap_mb(
    quantizer: QuantizerOptions, exchange: ExchangeOptions, module: nn.Module, group: dist.ProcessGroup
) -> float:
    """DDP's bucket size, MiB: `exchange.bucket_cap_mb`, but one bucket for all with PowerSGD over gloo.

    Its hook starts later all-reduces from callbacks, which over gloo run on threads: with several buckets they come in
    another order on another rank, and torch ends the process ("collective mismatch"; seen with torch 2.13).
    """
    if isinstance(quantizer, PowerSgdOptions) and dist.get_backend(group) == "gloo":
        return 1 + sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()) / 2**20
    return exchange.bucket_cap_mb


def _refuse_several_buckets(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Raise ValueError where DDP makes several buckets whatever their size, one for each dtype: see `bucket_cap_mb`."""
    dtypes = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.requires_grad}
    if len(dtypes) > 1 and dist.get_backend(group) == "gloo" and group.size() > 1:
        raise ValueError(
            f"powersgd over gloo, and parameters of {' and '.join(sorted(dtypes))}, whose buckets it would exchange in "
            "another order on another rank; allowed: parameters of one dtype (model.dtype: float32, or bf16 with a "
            "model without BatchNorm), or GPUs"
        )


def _counted(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses postponed annotations
    return state.exchange(bucket)
