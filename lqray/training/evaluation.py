"""Loss and accuracy of a model on a dataset, shared out over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from lqray.experiment.options.model import ModelOptions
from lqray.training.dataset import Dataset, Split
from lqray.training.forward import logits

_BATCH = 1024


@torch.no_grad()
def evaluate(
    model: nn.Module,
    options: ModelOptions,
    dataset: Dataset,
    split: Split,
    group: dist.ProcessGroup,
    device: torch.device,
) -> tuple[float, float]:
    """(mean cross entropy, accuracy in [0, 1]) over all of a split. Collective: rank r of W takes every W-th example
    from r on, so each counts once; the model is left in the mode it was in. An output with a NaN is no answer, and not
    correct."""
    was_training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, examples
    for inputs, labels in dataset.evaluation(split, group.rank(), group.size(), _BATCH):
        out = logits(model, inputs, options)
        totals[0] += cross_entropy(out, labels, reduction="sum")
        totals[1] += ((out.argmax(dim=1) == labels) & ~out.isnan().any(dim=1)).sum()
        totals[2] += labels.numel()
    dist.all_reduce(totals, group=group)
    model.train(was_training)
    loss, correct = (totals[:2] / totals[2]).tolist()
    return loss, correct
