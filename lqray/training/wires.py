"""How a worker's network is connected to those of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import (
    Baseline,
    Decision,
    GradientExchange,
    Volume,
    bucket_cap_mb,
    decide,
    full_precision_volume,
    is_baseline,
)
from lqray.communication.bucket import quantized_sizes
from lqray.communication.regrouping import State
from lqray.experiment.options.quantizer import CompressorOptions, resolved_for
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.quantization import compressor_of
from lqray.quantization.regrouping import Regrouping, RegroupingError
from lqray.training.anchors import Anchors, anchors_of


@dataclass(frozen=True)
class Wires:
    """How this process trains and exchanges. model: the network, or DDP around it. exchange, baseline: at most one.
    decision: of `exchange.bypass: auto`. workers: those of the trial's that this process runs. anchors: with
    `exchange.every` the parameters that workers share, which are then exchanged without DDP."""

    model: nn.Module
    network: nn.Module
    group: dist.ProcessGroup
    workers: range
    exchange: GradientExchange | None = None
    baseline: Baseline | None = None
    decision: Decision | None = None
    anchors: Anchors = field(default_factory=dict)

    def begin_step(self, iteration: int, measure: bool, keep: bool = False) -> None:
        """Call before each step's backward passes. measure, keep: as of `GradientExchange.begin_step`."""
        if self.exchange:
            self.exchange.begin_step(iteration, measure=measure, keep=keep)
        if self.baseline:
            self.baseline.begin_step()

    @contextmanager
    def pass_of(self, last: bool) -> Iterator[None]:
        """A forward and a backward pass; the last of a step's starts the exchange of gradients, the others add theirs
        up."""
        if last or not isinstance(self.model, DistributedDataParallel):
            yield
            return
        with self.model.no_sync():
            yield

    def finish(self) -> None:
        """Call after the last step. Raises as `GradientExchange.finish`."""
        if self.exchange:
            self.exchange.finish()

    def volume(self) -> Volume:
        """What this step's exchange moved."""
        chosen = self.exchange or self.baseline
        if chosen:
            return chosen.volume
        return self._plain

    @cached_property
    def _plain(self) -> Volume:
        """Of every step without quantizing."""
        return full_precision_volume(
            self.network, self.group.size() if isinstance(self.model, DistributedDataParallel) else 0
        )

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers (BatchNorm's statistics), as DDP does before each forward pass. Collective;
        to be called before buffers are used or compared after the last one."""
        if self.group.size() == 1:
            return
        buffers = list(self.network.buffers())
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            chosen = [buffer for buffer in buffers if buffer.dtype == dtype]
            flat = torch.cat([buffer.reshape(-1) for buffer in chosen])
            dist.broadcast(flat, group=self.group, group_src=0)
            for buffer, values in zip(chosen, flat.split([buffer.numel() for buffer in chosen]), strict=True):
                buffer.copy_(values.view_as(buffer))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All that decides this process's next exchange."""
        chosen = self.exchange or self.baseline
        return chosen.state_dict() if chosen else {}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        chosen = self.exchange or self.baseline
        if chosen:
            chosen.load_state_dict(state)

    def by_workers(self, before: int) -> Regrouping:
        """How what so many processes kept of workers comes to those that there are now."""
        each = len(self.workers) * self.group.size() // before
        return Regrouping(tuple(range(rank * each, (rank + 1) * each) for rank in range(before)), self.workers)

    def regrouped(self, states: Sequence[State], number: int) -> dict[str, Mapping[str, Tensor]]:
        """To load here, of what `state_dict` returned on all ranks of another number of processes, before exchange
        `number`. Raises RegroupingError where the next steps would be other bits than theirs."""
        if self.exchange is None:
            what = "torch's own hook does, which knows processes only" if self.baseline else "an all-reduce does"
            raise RegroupingError(
                f"tensors are averaged as {what}: its sums, and what PowerSGD keeps of them, are other bits in another "
                "number of processes"
            )
        return self.exchange.regrouped(states, number)


@contextmanager
def connect(trial: Trial, network: nn.Module, group: dist.ProcessGroup) -> Iterator[Wires]:
    """The network as this rank trains it, with its quantized exchange or torch's own hook: neither for `sgd` (no DDP
    either) and for `full_precision` (plain DDP). Collective.

    Raises ValueError when the workers do not divide evenly among the processes.
    """
    if trial.workers % group.size():
        raise ValueError(
            f"the trial has {trial.workers} workers, the process group {group.size()} ranks; allowed: a divisor of the "
            "workers"
        )
    share = trial.workers // group.size()
    workers = range(group.rank() * share, (group.rank() + 1) * share)
    anchors = {} if trial.exchange.every is None else anchors_of(network)
    wires = Wires(network, network, group, workers, anchors=anchors)
    if trial.quantizer.method == "sgd":
        yield wires
        return
    model = None
    if not anchors:
        model = DistributedDataParallel(
            network,
            process_group=group,
            bucket_cap_mb=bucket_cap_mb(trial.quantizer, trial.exchange, network, group),
            find_unused_parameters=trial.exchange.find_unused_parameters,
        )
        wires = replace(wires, model=model)
    if is_baseline(trial.quantizer):
        baseline = Baseline(trial.quantizer, group)
        if model:
            baseline.attach(model)
        else:
            baseline.prepare(network)
        yield replace(wires, baseline=baseline)
        return
    if not isinstance(trial.quantizer, CompressorOptions):
        yield wires
        return
    compressor = compressor_of(resolved_for(trial.quantizer, trial.optimizer.name))
    if trial.exchange.bypass == "auto":
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        quantized = quantized_sizes(network, trial.exchange)
        compressor.bind_to(quantized)
        like = max(trained, key=torch.Tensor.numel)
        decision = decide(compressor, quantized, group, like.device, trial.exchange, len(workers), like.dtype)
        wires = replace(wires, decision=decision)
        if decision.bypass:
            yield wires
            return
    seeds = [derive_seed(trial.seed, "rounding", worker) for worker in workers]
    exchange = GradientExchange(compressor, trial.exchange, group, seeds, derive_seed(trial.seed, "shared rounding"))
    try:
        if model:
            exchange.attach(model)
        else:
            exchange.prepare(network, anchors)
        yield replace(wires, exchange=exchange)
    finally:
        exchange.close()
