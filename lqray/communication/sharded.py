"""Quantized gradients under torch's FSDP2 (`fully_shard`): `lqray.attach_fsdp(model, "alq", bits=3)`.

FSDP reduce-scatters each module's gradients through an object that `FSDPModule.set_custom_reduce_scatter` replaces;
this one sends every rank the codes of its shard. Parameters are gathered by FSDP as before, in full precision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lqray.communication import streams
from lqray.communication.checks.agreement import check_agreement
from lqray.communication.keywords import compressor_and_options, refuse_layers
from lqray.communication.level_update import update_levels
from lqray.communication.numbering import kept_seed, seed_to_keep
from lqray.communication.scattering import start_reduce_scatter
from lqray.communication.wire.leaving import wait_for_gloo_at_exit
from lqray.communication.wire.parcel import CheckWords
from lqray.communication.wire.volume import Volume
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Compressor
from lqray.quantization.place import Place


class ShardedExchange:
    """Reduce-scatters an FSDP2 model's gradients quantized. A step is what comes before a module's second turn.

    steps: how many have begun. volume: of the current step, without the parameters that FSDP gathers. Levels are fitted
    on schedule to the gradients of a step before the next one begins.
    """

    def __init__(self, compressor: Compressor, seed: int, modules: int, together: Place) -> None:
        """together: what the places of all ranks have in common."""
        wait_for_gloo_at_exit()
        self.compressor = compressor
        self._together = together
        self.volume = Volume()
        self.steps = 0
        self._seed = seed
        self._modules = modules
        self._calls = 0
        self._seen: set[int] = set(range(modules))
        self._checks = CheckWords()

    def reduce_scatter(self, module: int, output: Tensor, gradient: Tensor, group: dist.ProcessGroup, op: Any) -> None:
        """Write the mean or sum of `gradient` (W * n,) over the ranks to `output` (n,), this rank's shard."""
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM):
            raise ValueError(
                f"FSDP reduces with {op}; allowed: AVG and SUM. With set_gradient_divide_factor, call "
                "set_force_sum_reduction_for_comms(True) on the same modules"
            )
        if module in self._seen:
            self._begin_step(group)
        self._seen.add(module)
        parts = gradient.view(group.size(), -1)
        if self.compressor.schedule.wants_sample(self.steps - 1, self.compressor.samples):
            for part in parts:
                self.compressor.observe(part)
        self._calls += 1
        arguments = self.compressor, group, self._seed, self._calls - 1, self.volume, self._checks
        place = replace(self._together, worker=group.rank(), workers=group.size())
        mean = start_reduce_scatter(parts, *arguments, place)()
        output.copy_(mean if op == dist.ReduceOp.AVG else mean * group.size())

    def _begin_step(self, group: dist.ProcessGroup) -> None:
        self._checks.raise_found()
        if self.steps and self.compressor.schedule.is_due(self.steps - 1):
            update_levels(self.compressor, group, streams.device_of(group))
        self.steps += 1
        self._seen.clear()
        self.volume = Volume()

    def finish(self) -> None:
        """Call after the last step. Raises LevelsDifferError for an earlier one on a GPU."""
        self._checks.raise_all()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All that decides this rank's next step, to be taken between steps; of every rank, its own."""
        self.finish()
        counts = {"steps": torch.tensor(self.steps), "calls": torch.tensor(self._calls)}
        noise = {"seed": seed_to_keep(self._together.seed)}
        return {"quantizer": self.compressor.state_dict(), "counts": counts, "noise": noise}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state_dict` returned on this rank. The next step is the same bits as without the interruption,
        with the same number of ranks."""
        self.compressor.load_state_dict(dict(state["quantizer"]))
        self.steps, self._calls = int(state["counts"]["steps"]), int(state["counts"]["calls"])
        self._together = replace(self._together, seed=kept_seed(state.get("noise", {}).get("seed")))
        self._seen = set(range(self._modules))


class _ReduceScatter:
    """What FSDP asks of an object for it: torch.distributed.fsdp's ReduceScatter."""

    def __init__(self, exchange: ShardedExchange, module: int) -> None:
        self._exchange = exchange
        self._module = module

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        self._exchange.reduce_scatter(self._module, output_tensor, input_tensor, group, op)


def attach_fsdp(model: nn.Module, method: str, *, seed: int = 0, **options: Any) -> ShardedExchange:
    """Make a model sharded by `fully_shard` reduce-scatter its gradients quantized from its next backward pass on.
    Collective over all ranks: each calls it with the same arguments, after every `fully_shard`, before training.

    method, options: a name and the method's options (docs/guide/methods.md), and `rounding` (docs/guide/exchange.md).
    seed: of the rounding noise, from which each rank derives its own. Under HSDP what crosses replicas stays as it is.

    Raises TypeError for a model without modules of `fully_shard`; ValueError for a method or option that there is not,
    or a value that is not allowed; RanksDisagreeError where ranks' arguments differ.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        raise TypeError(
            f"attach_fsdp was given a {type(model).__name__} of which nothing is sharded; allowed: a model after "
            "torch.distributed.fsdp.fully_shard. For DistributedDataParallel there is lqray.attach"
        )
    compressor, exchanged = compressor_and_options(method, options, "attach_fsdp", ("rounding",))
    refuse_layers(compressor, "attach_fsdp")
    if compressor.fresh_samples:
        raise ValueError("attach_fsdp: sampling='fresh'; allowed: sampling='training', of the gradients that there are")
    world = dist.group.WORLD
    assert world is not None
    own_seed = derive_seed(seed, "rounding", world.rank())
    together = Place(correlated=exchanged.rounding == "correlated", seed=derive_seed(seed, "shared rounding"))
    agreed = {
        "quantizer": [compressor.name, str(compressor.options)],
        "modules": len(sharded),
        "rounding": [exchanged.rounding, together.seed],
    }
    check_agreement(json.dumps(agreed), [own_seed], world, streams.device_of(world))
    exchange = ShardedExchange(compressor, own_seed, len(sharded), together)
    for number, module in enumerate(sharded):
        reduction: Any = _ReduceScatter(exchange, number)
        module.set_custom_reduce_scatter(reduction)
    return exchange
