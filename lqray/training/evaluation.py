"""Loss and accuracy of a model on a dataset, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lqray.experiment.errors import PartError
from lqray.experiment.options.model import ModelOptions
from lqray.experiment.parts import call, checked
from lqray.training.dataset import Dataset, Split
from lqray.training.forward import logits

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function of outputs, float32 (B, classes), and targets, int64 (B,), to values of the B examples, (B,)."""

_BATCH = 1024


@torch.no_grad()
def evaluate(
    model: nn.Module,
    options: ModelOptions,
    dataset: Dataset,
    split: Split,
    group: dist.ProcessGroup,
    device: torch.device,
    metrics: Mapping[str, Metric] = MappingProxyType({}),
) -> list[float]:
    """Mean cross entropy, accuracy in [0, 1], and the means of `metrics`, by their references, over all of a split.
    Collective: rank r of W takes every W-th example from r on, so each counts once; the model is left in the mode it
    was in. An output with a NaN is no answer, and not correct. Raises PartError for a metric that does not give a value
    for each example."""
    was_training = model.training
    model.eval()
    totals = torch.zeros(3 + len(metrics), dtype=torch.float64, device=device)  # examples, loss, correct, metrics
    for inputs, labels in dataset.evaluation(split, group.rank(), group.size(), _BATCH):
        out = logits(model, inputs, options)
        totals[0] += labels.numel()
        totals[1] += cross_entropy(out, labels, reduction="sum")
        totals[2] += ((out.argmax(dim=1) == labels) & ~out.isnan().any(dim=1)).sum()
        for index, (reference, metric) in enumerate(metrics.items(), start=3):
            totals[index] += _values(reference, metric, out, labels).sum(dtype=torch.float64)
    dist.all_reduce(totals, group=group)
    model.train(was_training)
    means: list[float] = (totals[1:] / totals[0]).tolist()
    return means


def _values(reference: str, metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor:
    what = f"metric {reference}"
    values: Tensor = checked(what, call(what, metric, outputs=outputs.clone(), targets=targets.clone()), Tensor)
    if values.shape != targets.shape:
        raise PartError(
            f"{what}: found values of the shape {tuple(values.shape)} for {len(targets)} examples; allowed: a value "
            f"for each of them, {tuple(targets.shape)}"
        )
    return values
