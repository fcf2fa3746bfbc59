"""Metrics of a model on a dataset, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lqray.experiment.errors import PartError
from lqray.experiment.options.metrics import metric_name
from lqray.experiment.parts import call, checked
from lqray.training.dataset import Dataset, Split
from lqray.training.forward import Objective, outputs

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function of outputs, float32 (B, ...), and targets, such as int64 (B,), to a value for each target."""

_MOST_EXAMPLES, _MOST_OUTPUTS = 1024, 2**26


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    dataset: Dataset,
    split: Split,
    group: dist.ProcessGroup,
    device: torch.device,
    metrics: Mapping[str, Metric] = MappingProxyType({}),
) -> dict[str, float]:
    """By name, the task's metrics over all of a split, and the means of `metrics`, of a user's own, by their
    references. Collective: rank r of W takes every W-th example from r on, so each counts once; the model is left in
    the mode it was in. Raises PartError for a metric that does not give a value for each target."""
    was_training = model.training
    model.eval()
    task = objective.task
    size = max(1, min(_MOST_EXAMPLES, _MOST_OUTPUTS // task.outputs_per_example()))
    sums: list[Tensor] = []
    for inputs, targets in dataset.evaluation(split, group.rank(), group.size(), size):
        out = outputs(model, inputs, objective.options)
        found = task.totals(out, targets)
        found += [_values(name, metric, out, targets).sum(dtype=torch.float64) for name, metric in metrics.items()]
        row = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=device) for one in found])
        sums = [sums[0] + row if sums else row]
    totals = _of_all_ranks(sums, group, device)
    model.train(was_training)
    own = len(totals) - len(metrics)
    means = [total / totals[0] for total in totals[own:]]
    return task.metrics(totals[:own]) | dict(zip(map(metric_name, metrics), means, strict=True))


def _of_all_ranks(sums: list[Tensor], group: dist.ProcessGroup, device: torch.device) -> list[float]:
    """Sums of all ranks' sums, of which those that had no example have none. Collective."""
    if group.size() > 1:
        length = torch.tensor(sums[0].numel() if sums else 0, device=device)
        dist.all_reduce(length, op=dist.ReduceOp.MAX, group=group)
        sums = sums or [torch.zeros(int(length), dtype=torch.float64, device=device)]
        dist.all_reduce(sums[0], group=group)
    totals: list[float] = sums[0].tolist()
    return totals


def _values(reference: str, metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor:
    what = f"metric {reference}"
    values: Tensor = checked(what, call(what, metric, outputs=outputs.clone(), targets=targets.clone()), Tensor)
    if values.shape != targets.shape:
        raise PartError(
            f"{what}: found values of the shape {tuple(values.shape)} for {targets.numel()} targets; allowed: a value "
            f"for each of them, {tuple(targets.shape)}"
        )
    return values
