"""Steps by torch's own post-local SGD (Lin et al., ICLR 2020), to compare with: gradients are all-reduced at every step
for a while, and then parameters are averaged now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.utils import average_parameters_or_parameter_groups
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from lqray.communication import Volume
from lqray.communication.bucket import refuse_sparse
from lqray.experiment.options.quantizer import PostLocalSgdOptions
from lqray.quantization.regrouping import RegroupingError
from lqray.training.anchors import write_anchors
from lqray.training.dataset import Batch
from lqray.training.steps.apart import StepsApart
from lqray.training.steps.setting import Progress, Setting
from lqray.training.steps.statistics import average_buffers
from lqray.training.steps.worker import LocalWorker


class PostLocalSgd(StepsApart):
    """See the module; `lqray.training.steps.setting.Steps` says what its methods do. Each process is one worker. The
    network that all share is what a step of the warm-up, or the last average, came to."""

    def __init__(self, setting: Setting, progress: Progress) -> None:
        wires, options, exchange = setting.wires, setting.trial.quantizer, setting.trial.exchange
        assert isinstance(options, PostLocalSgdOptions)
        assert exchange.every is not None
        if len(wires.workers) > 1:
            raise ValueError(
                f"post_local_sgd: the trial has {setting.trial.workers} workers, the process group "
                f"{wires.group.size()} ranks; allowed: a rank for each worker, for torch averages what processes hold"
            )
        refuse_sparse(wires.network)
        self._start, self._every = options.start_iteration, exchange.every
        self._own = _Worker(setting, wires.workers[0], self._start, self._every)
        super().__init__(setting, progress, [self._own])

    def settle(self) -> None:
        """See `Steps.settle`: buffers are alike from the last average on."""

    def rehearse(self) -> None:
        """See `Steps.rehearse`, and that of `DataParallel`."""
        setting = self._setting
        self._own.rehearse(next(setting.dataset.feed(setting.batches.draws(0, 1, self._wires.workers))))

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Steps.state_dict`."""
        return {}, {"local": {"worker": self._own.state_dict(), "traffic": self._traffic.state_dict()}}

    def load_state_dict(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """See `Steps.load_state_dict`."""
        self._own.load_state_dict(own["local"]["worker"])
        self._traffic.load_state_dict(own["local"]["traffic"])

    def regrouped(self, owns: Sequence[Mapping[str, Any]], done: int) -> dict[str, Any]:
        """See `Steps.regrouped`: there is one number of processes only."""
        raise RegroupingError("post_local_sgd has a process for each worker")

    def _exchange(self, done: int) -> None:
        """Share what is alike on all ranks after so many steps. torch does not average after the last step."""
        alone = done - self._start
        if alone > 0 and alone % self._every:
            if done < self._setting.iterations:
                return
            self._own.average()
        anchors, network, group = self._wires.anchors, self._wires.network, self._wires.group
        shared = self._own.parameters(anchors)
        self._check_finite("the average" if alone > 0 else "the step", shared, done)
        with torch.no_grad():
            for name, one in shared.items():
                anchors[name].copy_(one)
        write_anchors(anchors, anchors, network)
        average_buffers([name for name, _ in network.named_buffers()], [self._own.network], network, group)
        moved = Volume(sum(one.numel() for one in shared.values()))
        moved.all_reduced(sum(one.numel() * one.element_size() for one in shared.values()), group.size())
        self._traffic.add(moved, moved.coordinates)
        self._count_skipped()


class _Worker(LocalWorker):
    """One that exchanges gradients, and averages parameters, by torch's own means. torch says to give the averager as
    many steps of warm-up as the hook: it would then average after the first step alone. With every - 1 more, it does so
    after each round of `every`, as all steps apart."""

    def __init__(self, setting: Setting, number: int, start: int, every: int) -> None:
        super().__init__(setting, number)
        group, exchange = setting.wires.group, setting.trial.exchange
        self._model = DistributedDataParallel(
            self.network, process_group=group, bucket_cap_mb=exchange.bucket_cap_mb, broadcast_buffers=False
        )
        self._state = PostLocalSGDState(group, None, start, post_local_gradient_allreduce=False)
        self._model.register_comm_hook(self._state, post_localSGD_hook)
        self._averager = PeriodicModelAverager(every, start + every - 1, group)
        self._inner = self._optimizer
        self._optimizer = PostLocalSGDOptimizer(self._inner, self._averager)

    def average(self) -> None:
        """Give all workers the mean of their parameters, whatever step it is."""
        average_parameters_or_parameter_groups(self._optimizer.param_groups, self._averager.process_group)

    def rehearse(self, batch: Batch) -> None:
        """A backward pass of which nothing stays."""
        self._backward(0, batch)
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """See `LocalWorker.state_dict`."""
        return {**super().state_dict(), "iteration": self._state.iter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `LocalWorker.load_state_dict`. torch leaves the groups behind that were loaded into the optimizer within
        its own."""
        super().load_state_dict(state)
        self._optimizer.param_groups = self._inner.param_groups
        self._state.iter = state["iteration"]

    def _backward(self, iteration: int, batch: Batch) -> Tensor:
        def around(last: bool) -> AbstractContextManager[None]:
            return nullcontext() if last else self._model.no_sync()

        return self._setting.backward(self._model, batch, iteration, self._number, around)

    def _skip(self, buffers: Mapping[str, Tensor]) -> None:
        """The others average all the same."""
        super()._skip(buffers)
        self._averager.average_parameters(self._optimizer.param_groups)
