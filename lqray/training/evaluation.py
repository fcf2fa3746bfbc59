"""Loss and accuracy of a model on a dataset, shared out over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from lqray.training.data import ImageClassification, Images

_BATCH = 1024


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: ImageClassification, images: Images, group: dist.ProcessGroup
) -> tuple[float, float]:
    """(mean cross entropy, accuracy in [0, 1]) over all of `images`. Collective: rank r of W takes every W-th example
    from r on, so each counts once; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    own_pixels, own_labels = images.pixels[group.rank() :: group.size()], images.labels[group.rank() :: group.size()]
    totals = torch.zeros(2, dtype=torch.float64, device=images.labels.device)
    for pixels, labels in zip(own_pixels.split(_BATCH), own_labels.split(_BATCH), strict=True):
        logits = model(dataset.normalized(pixels))
        totals[0] += cross_entropy(logits, labels, reduction="sum")
        totals[1] += (logits.argmax(dim=1) == labels).sum()
    dist.all_reduce(totals, group=group)
    model.train(was_training)
    loss, correct = (totals / len(images)).tolist()
    return loss, correct
