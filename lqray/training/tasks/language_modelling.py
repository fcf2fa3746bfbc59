"""The next token at every position of a text: cross entropy in nats, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from lqray.experiment.options.task import LanguageModellingOptions
from lqray.training.dataset import Dataset

_MOST_EXPONENT = 709.0  # of a finite double


@dataclass(frozen=True)
class LanguageModelling:
    """outputs: logits (B, T, V), of which at least the first `vocabulary` mean tokens. targets: int64 (B, T).
    token_bytes: int64 (vocabulary,), how many bytes of the text each token stands for; None where that is not known."""

    context: int
    vocabulary: int
    token_bytes: Tensor | None = None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `lqray.training.tasks.Task.loss`."""
        return cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def totals(self, outputs: Tensor, targets: Tensor) -> list[Tensor | int]:
        """See `lqray.training.tasks.Task.totals`."""
        nats = cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum")
        if self.token_bytes is None:
            return [targets.numel(), nats, nats.new_tensor(math.nan)]  # unknown on one rank is unknown on all
        return [targets.numel(), nats, self.token_bytes.to(targets.device)[targets].sum()]

    def metrics(self, totals: list[float]) -> dict[str, float]:
        """See `lqray.training.tasks.Task.metrics`: `perplexity` is exp(loss); `bits_per_byte` the nats of all tokens in
        bits, over the bytes that they stand for, which does not depend on the tokenizer."""
        tokens, nats, size = totals
        loss = nats / tokens
        found = {"loss": loss, "perplexity": math.inf if loss > _MOST_EXPONENT else math.exp(loss)}
        return found | ({"bits_per_byte": nats / math.log(2) / size} if size > 0 else {})

    def outputs_per_example(self) -> int:
        """See `lqray.training.tasks.Task.outputs_per_example`."""
        return self.context * self.vocabulary


def build(options: LanguageModellingOptions, dataset: Dataset) -> LanguageModelling:
    """Of the data's tokens."""
    return LanguageModelling(dataset.shape[0], dataset.classes, getattr(dataset, "token_bytes", None))
