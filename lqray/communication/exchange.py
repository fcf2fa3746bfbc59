"""The torch DDP communication hook: gradient bucket -> payload -> reduction -> mean gradient.

No `from __future__ import annotations` here: DDP checks the hook's annotations at run time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import streams
from lqray.communication.bucket import (
    Bucket,
    Cut,
    Span,
    check_parameters,
    cut_bucket,
    flat_like,
    keys_of,
    quantized_sizes,
    skipped_names,
)
from lqray.communication.checks.agreement import check_agreement
from lqray.communication.encoding import Encoding
from lqray.communication.hosts import Senders, senders_of
from lqray.communication.level_update import update_levels
from lqray.communication.measurement import Observations
from lqray.communication.moments import DecodedMoments, OptimizerMoments, kept
from lqray.communication.numbering import (
    check_index,
    check_iteration,
    check_layers,
    kept_seed,
    seed_to_keep,
)
from lqray.communication.preconditioner import Preconditioner, finished_means, scales_of
from lqray.communication.reduction import Reduction, load_reduction
from lqray.communication.regrouping import State, check_exact, regrouped
from lqray.communication.residuals import Residuals
from lqray.communication.skipped import Bundle
from lqray.communication.wire.leaving import wait_for_gloo_at_exit
from lqray.communication.wire.parcel import CheckWords, Parcel, check_of
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor, Quantizer
from lqray.quantization.density import Density, density_of
from lqray.quantization.place import SHARED_SEED, Place
from lqray.quantization.regrouping import Regrouping


class GradientExchange(Encoding):
    """Exchanges a DDP model's gradients quantized. All ranks of `group` make one with equal arguments but `seeds`.

    compressor: encodes, and adapts its levels by `update_levels`. options: which reduction, what is skipped, where
    quantization buckets start. seeds: unsigned 64-bit, one for each worker of this process, all different over all
    ranks, else rounding errors would not average out. shared_seed: of what all workers draw together, such as the noise
    of `dither`; trials that had the same would share it. Every rank has as many workers; their gradients are encoded
    one by one, and the mean over all workers of all ranks is the same bits however many processes they share.

    Raises NoContractionError where error feedback could only grow.
    """

    def __init__(
        self,
        compressor: Compressor,
        options: ExchangeOptions,
        group: dist.ProcessGroup,
        seeds: Sequence[int],
        shared_seed: int = SHARED_SEED,
    ) -> None:
        wait_for_gloo_at_exit()
        self.compressor = compressor
        self.volume = Volume()
        self._options = options
        self._group = group
        self._seeds = list(seeds)
        self._senders = Senders(group, seeds)
        self._found = options.reduction != "hierarchical"
        self._kept_hosts: Tensor | None = None
        self._together = Place(correlated=options.rounding == "correlated", seed=shared_seed)
        self._checks = CheckWords()
        self._reduction: Reduction | None = None
        self._reductions_state: dict[str, Tensor] = {}
        fed_back = options.error_feedback and options.trajectory == "quantized"
        self._residuals = Residuals(compressor, options) if fed_back else None
        self._preconditioner = Preconditioner.of(options)
        self._moments: DecodedMoments | None = None
        self._must_fit = self._residuals is not None and compressor.adapts
        self._unfitted = self._must_fit
        self._names: dict[Tensor, str] = {}
        self._skipped: frozenset[str] = frozenset()
        self._aside: list[dict[Tensor, Tensor | None]] = []
        self._bundle = Bundle(group, len(self._seeds))
        self._side = streams.Side()
        self._iteration, self._last = 0, -1
        self._exchanged: set[int] = set()
        self._plain = False
        self._observed = Observations(len(self._seeds))

    def attach(self, model: DistributedDataParallel) -> None:
        """Make `model` exchange its gradients through this object. Collective. Raises as `prepare`."""
        self.prepare(model.module)
        model.register_comm_hook(self, _hook)

    def prepare(self, module: nn.Module, exchanged: Mapping[str, Tensor] | None = None) -> None:
        """Know a module, whose buckets `exchange_bucket` then takes without DDP. exchanged: by the names of its
        parameters, the tensors of the buckets' `parameters()`; the parameters themselves without. Collective: raises
        RanksDisagreeError where ranks would misread each other's payloads, or round alike; ValueError for a parameter
        whose gradients are sparse, or of a dtype that no payload holds."""
        check_parameters(module)
        bits = getattr(self.compressor.options, "bits", None)
        self.compressor.bind_to(quantized_sizes(module, self._options, bits))
        agreed = {
            "quantizer": [self.compressor.name, str(self.compressor.options)],
            "exchange": self._options.model_dump(),
            "levels": self.compressor.fingerprint().hex(),
            "workers of a process": len(self._seeds),
            "shared seed": self._together.seed,
        }
        check_agreement(json.dumps(agreed), self._seeds, self._group, self._device)
        self._find_senders()
        self._load_reduction()
        parameters = dict(module.named_parameters()) if exchanged is None else exchanged
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._skipped = skipped_names(module, self._options)

    def keep_moments(self, decay: float) -> None:
        """Call before the first step: keep an average of squares of the means, with this weight of the past, for
        `moment_nmse`."""
        self._moments = DecodedMoments(decay)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Call after `attach`, before the first step, with what steps along the gradients: `precondition: optimizer`
        takes its second moments. Raises ValueError where it is seen to have none, as `begin_step` does later."""
        if self._preconditioner and isinstance(self._preconditioner.moments, OptimizerMoments):
            self._preconditioner.moments.follow(optimizer, self._names)

    def begin_step(self, iteration: int, measure: bool = False, keep: bool = False) -> None:
        """Call before each step's backward passes, with an iteration of its own: rounding noise is a function of it.
        `measure`: also find the NMSE of this step's own payloads, at the cost of decoding them. `keep`: hold what the
        first worker here encodes, for `density`. Raises LevelsDifferError for an earlier step on a GPU, where nothing
        waits for it, ValueError for an iteration that was exchanged before, NoContractionError where error feedback
        would grow without bound."""
        self._checks.raise_found()
        check_iteration(iteration, self._last)
        for device in {parameter.device for parameter in self._names}:
            self.compressor.tensors_on(device)  # new ones make the host wait for a GPU: not within the backward pass
        if self._residuals:
            self._residuals.begin_step(iteration)
        if self._preconditioner and isinstance(self._preconditioner.moments, OptimizerMoments):
            self._preconditioner.moments.check()
        self._find_senders()
        self.volume = self._senders.volume()
        self._iteration = iteration
        self._exchanged = set()
        wanted = self.compressor.schedule.wants_sample(iteration, self.compressor.samples)
        sample = (wanted or self._unfitted) and not self.compressor.fresh_samples
        self._observed.begin_step(sample, measure, keep)
        self._plain = iteration < self._options.quantize_from or self._options.trajectory == "full_precision"
        self._aside = []
        self._bundle = Bundle(self._group, len(self._seeds), self._senders.beside)

    def set_aside(self) -> None:
        """Call after the backward pass, within DDP's `no_sync`, of each but the last of this process's workers: takes
        the gradients from the parameters."""
        if len(self._aside) + 1 >= len(self._seeds):
            raise RuntimeError(
                f"{len(self._seeds)} workers share this process and {len(self._aside) + 1} were set aside; allowed: "
                "all but the last, whose backward pass starts the exchange"
            )
        self._aside.append({parameter: parameter.grad for parameter in self._names})
        for parameter in self._names:
            parameter.grad = None

    def exchange_bucket(self, bucket: Bucket) -> Future[Tensor]:
        """Start the exchange of a DDP bucket: (n,) to a future of the mean over all workers, (n,)."""
        if len(self._aside) + 1 != len(self._seeds):
            raise RuntimeError(
                f"{len(self._seeds)} workers share this process and the gradients of {len(self._aside) + 1} are known; "
                "call set_aside after the backward pass of each but the last"
            )
        self._claim(bucket.index())
        cut = cut_bucket(bucket, self._names, self._skipped, self.compressor, self._by_layer)
        check_layers(len(cut.tensors))
        quantized = cut
        flats = [flat_like(bucket, gradients) for gradients in self._aside] + [bucket.buffer()]
        device = bucket.buffer().device
        self._side.prepare(device, flats)  # beside the backward pass: its kernels go on while these encode
        with self._side.entered():
            if self._plain:
                self._look_at([cut.take(flat) for flat in flats], cut, bucket.index())
                everything = frozenset(self._names.values())
                cut = cut_bucket(bucket, self._names, everything, self.compressor, self._by_layer)
            means, skipped = self._start_bucket(flats, cut, bucket)
        whole = cut.put_when_done(means, skipped, device)
        return whole.then(partial(kept, self._moments, quantized)) if self._moments else whole

    def exchange(self, gradients: Sequence[Tensor], index: int) -> Future[Tensor]:
        """As `exchange_bucket`, without DDP: tensor number `index` of this step, (n,) of each of this process's
        workers, to a future of the mean over all workers, (n,). `begin_step` comes before each step."""
        self._claim(index)
        cut = Cut([[Span(str(index), 0, gradients[0].numel())]], [], gradients[0].numel())
        self._side.prepare(gradients[0].device, gradients)
        with self._side.entered():
            means = self._start_exchange([[gradient] for gradient in gradients], cut, index)
        mean = means.then(lambda done: done.value()[0])
        return mean.then(partial(kept, self._moments, cut)) if self._moments else mean

    def _claim(self, index: int) -> None:
        """A tensor of a step has its rounding noise once."""
        check_index(index)
        if index in self._exchanged:
            raise RuntimeError(
                f"bucket {index} of iteration {self._iteration} is exchanged a second time: it would be rounded with "
                "the same noise, which then never averages out. Add `exchange.begin_step(iteration)` before the "
                "backward passes of every step; where a step has several backward passes, let all but the last run "
                "within DDP's no_sync()"
            )
        self._exchanged.add(index)
        self._last = self._iteration

    def _find_senders(self) -> None:
        """Collective the first time, with `reduction: hierarchical`: only ranks that agree may call it. Raises as
        `lqray.communication.hosts.Hosts`."""
        if self._found:
            return
        if self.compressor.fresh_samples:
            raise ValueError(
                "sampling='fresh' with reduction='hierarchical', where levels are fitted to the means of hosts; "
                "allowed: sampling='training'"
            )
        self._senders, self._found = senders_of(self._options, self._group, self._seeds), True
        self._senders.check(self._kept_hosts)
        self._observed = Observations(len(self._senders.seeds))

    def _load_reduction(self) -> Reduction:
        """Collective the first time: only ranks that agree may call it."""
        if self._reduction is None:
            self._reduction = load_reduction(self._options, self._senders.group, self._checks, self._senders.inside)
            if self._reductions_state:
                self._reduction.load_state_dict(self._reductions_state)
        return self._reduction

    def _start_bucket(
        self, flats: Sequence[Tensor], cut: Cut, bucket: Bucket
    ) -> tuple[Future[list[Tensor]] | None, Future[Tensor] | None]:
        """Futures of what is quantized and of what is not; None where there is nothing."""
        means = skipped = None
        if cut.tensors:
            means = self._start_exchange([cut.take(flat) for flat in flats], cut, bucket.index())
        if cut.skipped:
            skipped = self._bundle.add([cut.take_skipped(flat) for flat in flats], self.volume)
        # A step that quantizes nothing sends each bucket at once on a GPU, beside the backward pass. On a CPU one
        # all-reduce stays: with three ranks or more its sums are other bits in another order.
        if bucket.is_last() or (self._plain and streams.queues(bucket.buffer().device)):
            self._bundle.start(self.volume)
        return means, skipped

    def _start_exchange(self, tensors: Sequence[Sequence[Tensor]], cut: Cut, index: int) -> Future[list[Tensor]]:
        """tensors: [worker][tensor]. A future of the mean of each."""
        streams.used_here(*self.compressor.tensors_on(tensors[0][0].device))
        reduction = self._load_reduction()
        first, offsets = self._offsets(cut, index)
        tensors = self._senders.take(tensors, self.volume)
        parts = 1 if self.compressor.layers else reduction.parts(len(self._senders.seeds))
        before, keys = self._preconditioner, [keys_of(spans) for spans in cut.tensors]
        scales = scales_of(before, tensors[0], keys)
        payloads = self._encoded(tensors, cut, offsets, scales, parts)
        names = [f"{'+'.join(span.name for span in spans)}#{part}" for spans in cut.tensors for part in range(parts)]
        meaning = self.compressor.fingerprint() + bytes(scale is not None for scale in scales)
        check = check_of(meaning, first, self._together.seed)
        parcel = Parcel(payloads, self._senders.seeds, check, parts, names, self._iteration)
        # It must not hold the group, by this exchange: see AllGather.reduce.
        return reduction.reduce(parcel, self.compressor, self.volume).then(
            partial(finished_means, cut, before, scales, tensors[0][0].dtype)
        )

    def finish(self) -> None:
        """Call after the last step. Raises LevelsDifferError for an earlier step on a GPU, where nothing has waited for
        it yet."""
        self._checks.raise_all()

    def close(self) -> None:
        """Let go of the reduction's threads and process groups, also after an error. Checks nothing: see `finish`."""
        if self._reduction:
            self._reduction.close()
        self._senders.close(self._side.synchronize)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All that decides this process's next exchange: of the quantizer, equal on all ranks but for its statistics,
        and of error feedback, this process's own. Raises LevelsDifferError as `finish`: of an exchange that went wrong
        nothing is kept."""
        self.finish()
        noise = {"seed": seed_to_keep(self._together.seed)}
        state = {"quantizer": self.compressor.state_dict(), "residuals": {}, "noise": noise}
        if self._residuals:
            state["residuals"] = self._residuals.state_dict()
            state["feedback"] = {"fitted": torch.tensor(not self._unfitted)}
            state["reduction"] = self._reduction.state_dict() if self._reduction else {}
        if (hosts := self._senders.state()) is not None:
            state["hosts"] = {"count": hosts}
        if self._moments:
            state["moments"] = self._moments.state_dict()
        if self._preconditioner:
            state["preconditioner"] = self._preconditioner.moments.state_dict()
        return state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `state_dict` returned. The next step may then be any. Raises ValueError for the state of an
        exchange between another number of hosts."""
        self._kept_hosts = state.get("hosts", {}).get("count")
        self._senders.check(self._kept_hosts)
        self.compressor.load_state_dict(state["quantizer"])
        self._iteration, self._last, self._exchanged = 0, -1, set()
        self._together = replace(self._together, seed=kept_seed(state.get("noise", {}).get("seed")))
        if self._moments:
            self._moments.load_state_dict(state.get("moments", {}))
        if self._preconditioner:
            self._preconditioner.moments.load_state_dict(state.get("preconditioner", {}))
        if self._residuals:
            self._residuals.load_state_dict(state["residuals"])
            fitted = bool(state["feedback"]["fitted"]) if "feedback" in state else self.compressor.updates > 0
            self._unfitted = self._must_fit and not fitted
            self._reductions_state = state.get("reduction", {})
            if self._reduction:
                self._reduction.load_state_dict(self._reductions_state)

    def regrouped(self, states: Sequence[State], number: int) -> dict[str, Mapping[str, Tensor]]:
        """To load here, of what `state_dict` returned on all ranks of another number of processes, before exchange
        `number`. Raises RegroupingError where the next steps would be other bits than theirs, ValueError for the state
        of an exchange between another number of hosts."""
        exact = [name for parameter, name in self._names.items() if name in self._skipped and parameter.requires_grad]
        check_exact(self._options, exact, number)
        self._senders.check(states[0].get("hosts", {}).get("count"))
        size, held_by = self._group.size(), self._senders.held_by
        held = tuple(held_by(rank, len(states)) for rank in range(len(states)))
        grouping = Regrouping(held, held_by(self._group.rank(), size))
        return regrouped(states, grouping, self.compressor, self._load_reduction())

    def density(self) -> Density | None:
        """Of the normalized coordinates of the first worker here at the last step that kept them; None without any, or
        with a compressor that has no levels."""
        compressor = self.compressor
        return density_of(self._observed.kept, compressor.coding) if isinstance(compressor, Quantizer) else None

    def update_levels(self) -> bool:
        """Fit the levels to all ranks' statistics when the schedule says so, and with error feedback at the first step,
        since what unfitted levels lose is not fed back. Collective.

        See `lqray.communication.level_update`. Returns whether an update was due.
        """
        if not self.levels_due(self._iteration):
            return False
        update_levels(self.compressor, self._group, self._device, self._senders.group)
        self._unfitted = self._unfitted and not self.compressor.fitted
        return True

    @property
    def _device(self) -> torch.device:
        """Where collectives of this group want their tensors."""
        return streams.device_of(self._group)


def _hook(state: GradientExchange, bucket: GradBucket) -> Future[Tensor]:
    return state.exchange_bucket(bucket)
