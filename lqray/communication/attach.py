"""Quantized gradients in a training script of one's own: `lqray.attach(ddp_model, "alq", bits=3)`, and nothing else."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import streams
from lqray.communication.bucket import Bucket
from lqray.communication.exchange import GradientExchange
from lqray.communication.keywords import compressor_and_options
from lqray.communication.passes import Passes, rehearse
from lqray.experiment.seeding import derive_seed

State = Mapping[str, Mapping[str, Tensor]]

_REPEATED = (
    "a second backward pass would be exchanged although the gradients of the last exchange are still there: neither "
    "optimizer.step() nor optimizer.zero_grad() came in between, so what was quantized would be quantized again. To "
    "accumulate gradients, let all but the last backward pass of a step, with their forward passes, run within "
    "`with ddp_model.no_sync():`; of several losses call backward() on the sum; for gradients one by one, call "
    "optimizer.zero_grad() between the passes"
)


class AttachedExchange(GradientExchange):
    """A GradientExchange that counts its steps itself: a step is one pass over all of DDP's buckets.

    Levels are fitted on schedule between two steps: before the first bucket of the next one is encoded. steps: how many
    have been exchanged.
    """

    steps = 0
    _fitted_after = -1  # the iteration whose update, if one was due, has been made
    _rehearsing = False
    _measure_next = False

    def attach(self, model: DistributedDataParallel) -> None:
        """See `GradientExchange.attach`."""
        super().attach(model)
        self._model = weakref.ref(model)  # which holds this exchange, out of the garbage collector's sight
        self._passes = Passes(parameter for parameter in self._names if parameter.requires_grad)
        self._seen = 0

    def exchange_bucket(self, bucket: Bucket) -> Future[Tensor]:
        """See `GradientExchange.exchange_bucket`. Raises RuntimeError for a second backward pass before the optimizer
        has used or reset the gradients of the first."""
        if self._rehearsing:
            done: Future[Tensor] = streams.future(bucket.buffer().device)
            streams.complete(done, bucket.buffer)
            return streams.seen_by_ddp(done)
        if bucket.index() == 0:  # DDP hands buckets over in order
            if self._passes.is_repetition():
                raise RuntimeError(_REPEATED)
            self.update_levels()
            super().begin_step(self.steps, measure=self._measure_next)
            self._measure_next = False
        mean = super().exchange_bucket(bucket)
        if bucket.is_last():
            self.steps += 1
            self._seen += 1
            self._passes.exchanged()
        return mean

    def begin_step(self, iteration: int, measure: bool = False, keep: bool = False) -> None:
        """Not to be called: raises RuntimeError."""
        raise RuntimeError(
            "an exchange of lqray.attach counts its steps itself; remove the call of begin_step, or make a "
            "GradientExchange and call its begin_step before every step"
        )

    def measure_next_step(self) -> None:
        """Find `nmse`, `bias`, `entropy_bits` and `huffman_bits` of the next step, at the cost of decoding its
        payloads."""
        self._measure_next = True

    def update_levels(self) -> bool:
        """Fit the levels if that is due after the last step and was not done: the next step does so by itself. For who
        wants to see them before. Collective."""
        if not self.steps or self._fitted_after == self._iteration:
            return False
        self._fitted_after = self._iteration
        return super().update_levels()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All that decides this process's next exchange; of every rank, its own. See `gather_state`."""
        numbers = {parameter: number for number, parameter in enumerate(self._names)}
        order = [numbers[parameter] for parameter in self._passes.order or ()]
        return {
            **super().state_dict(),
            "steps": {
                "done": torch.tensor(self.steps),
                "fitted_after": torch.tensor(self._fitted_after),
                "order": torch.tensor(order, dtype=torch.int64),
            },
        }

    def gather_state(self) -> list[dict[str, dict[str, Tensor]]] | None:
        """Every rank's `state_dict()` in a list, on rank 0 of the group, for a checkpoint in one file; None on others.
        Collective."""
        group = self._group
        states: list[Any] | None = [None] * group.size() if group.rank() == 0 else None
        dist.gather_object(self.state_dict(), states, group=group, group_dst=0)
        return states

    def load_state_dict(self, state: State | Sequence[State]) -> None:
        """Restore what `state_dict` returned on this rank, or what `gather_state` returned on rank 0. Call it on every
        rank, between steps.

        The next steps are then the same bits as without the interruption. DDP lays its buckets out anew after its first
        backward pass, which a pass of zero gradients through the hooks of all parameters stands for. With static_graph
        there is no such pass: it warns unless two steps were trained before, whose results are to be thrown away.

        Raises ValueError for states of another number of ranks, or of an exchange whose steps were not counted here.
        """
        if isinstance(state, Mapping):
            own = state
        else:
            if len(state) != self._group.size():
                raise ValueError(
                    f"states of {len(state)} ranks; allowed: {self._group.size()}, the ranks of this group. To go on "
                    "with another number, which is not the same run any more, load one of them on every rank"
                )
            own = state[self._group.rank()]
        if "steps" not in own:
            raise ValueError("the state is not that of an exchange of lqray.attach: it has no count of steps")
        super().load_state_dict({key: dict(part) for key, part in own.items() if key != "steps"})
        self.steps = int(own["steps"]["done"])
        self._fitted_after = int(own["steps"]["fitted_after"])
        self._iteration = self._last = self.steps - 1
        self._lay_out(own["steps"]["order"].tolist())

    def close(self) -> None:
        """See `GradientExchange.close`."""
        self._passes.close()
        super().close()

    def _lay_out(self, order: Sequence[int]) -> None:
        model, parameters = self._model(), list(self._names)
        if model is None or not order or not self.steps or (model.find_unused_parameters and not model.static_graph):
            return  # DDP will do, or never does, what it does in a run that begins
        if model.static_graph:
            if self._seen < 2:
                warnings.warn(
                    "with static_graph DDP lays out its buckets anew after two steps; to continue to the bit, train "
                    "two steps of any data before load_state_dict, here and of parameters, optimizer and the rest",
                    stacklevel=3,
                )
            return
        if self._seen:
            return
        reached = [parameters[number] for number in order]
        others = [one for one in reversed(parameters) if one.requires_grad and one not in set(reached)]
        self._rehearsing = True
        try:
            rehearse(model, [*reached, *others])
        finally:
            self._rehearsing = False
        self._passes.close()
        self._passes = Passes(parameter for parameter in parameters if parameter.requires_grad)
        self._passes.order = reached
        self._seen = 1


def attach(
    model: DistributedDataParallel,
    method: str,
    *,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> AttachedExchange:
    """Make a DDP model exchange its gradients quantized from its next backward pass on. Collective: every rank calls it
    with the same arguments, before training. The script needs no other change.

    method: a name such as alq, qsgd or terngrad (docs/guide/methods.md). options: those of the method (bits,
    bucket_size, update_at, ...) and of the exchange (reduction, gather_bits, hosts, within, buckets, skip, skip_below,
    error_feedback and feedback_..., entropy, quantize_from, trajectory; docs/guide/exchange.md) by their names, of
    which no two are alike. seed: of the rounding noise, from which each rank derives its own. group: of the same ranks
    as DDP's own, the default.

    Raises TypeError where `model` is no DDP model; ValueError for a method or option that there is not, a value that is
    not allowed, or parameters whose gradients cannot be quantized; RanksDisagreeError where ranks' arguments differ;
    NoContractionError where error feedback could only grow.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"attach was given a {type(model).__name__}; allowed: a torch DistributedDataParallel. Wrap the module "
            "first: DistributedDataParallel(module)"
        )
    chosen: dist.ProcessGroup = group or model.process_group
    if sorted(dist.get_process_group_ranks(chosen)) != sorted(dist.get_process_group_ranks(model.process_group)):
        raise ValueError("group has other ranks than the model's own process group; allowed: the same ranks")
    compressor, exchanged = compressor_and_options(method, options, "attach")
    if compressor.fresh_samples:
        raise ValueError(
            "sampling='fresh' needs extra backward passes, which attach does not make; allowed: sampling='training'"
        )
    own, shared = derive_seed(seed, "rounding", chosen.rank()), derive_seed(seed, "shared rounding")
    exchange = AttachedExchange(compressor, exchanged, chosen, [own], shared)
    exchange.attach(model)
    return exchange
