"""Losses and metrics of tasks: known answers."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.names import tasks
from lqray.experiment.options.model import MlpOptions
from lqray.experiment.options.task import TASK
from lqray.training.forward import outputs
from lqray.training.tasks import build_task

TOKEN_BYTES = torch.tensor([1, 1, 2, 5])


def task(name: str, **options):
    data = SimpleNamespace(shape=(3,), classes=4, token_bytes=TOKEN_BYTES, optimum=0.125)
    return build_task(TASK[name](name=name, **options), data)


def outputs_and_targets(name: str, n: int):
    generator = torch.Generator().manual_seed(n)
    if name == "regression":
        return torch.randn(n, 1, generator=generator), torch.randn(n, generator=generator)
    shape = (n, 3) if name == "language_modelling" else (n,)
    targets = torch.randint(4, shape, generator=generator)
    return torch.randn(*shape, 4, generator=generator), targets


def test_every_task_has_options():
    assert set(tasks()) == set(TASK)


@pytest.mark.parametrize("name", tasks())
def test_metrics_of_two_batches_are_those_of_both_together(name):
    chosen = task(name)
    outputs, targets = outputs_and_targets(name, 7)
    whole = [float(one) for one in chosen.totals(outputs, targets)]
    parts = [chosen.totals(outputs[part], targets[part]) for part in (slice(2), slice(2, None))]
    sums = [float(one) + float(other) for one, other in zip(*parts, strict=True)]
    found = chosen.metrics(whole)
    assert found == pytest.approx(chosen.metrics(sums), rel=1e-6)
    assert tuple(found) == TASK[name].METRICS
    assert whole[0] == targets.numel()
    assert found["loss"] == pytest.approx(float(chosen.loss(outputs, targets)), rel=1e-5)
    assert outputs[0].numel() == chosen.outputs_per_example()


def test_bits_per_byte_are_those_of_an_independent_computation():
    outputs, targets = outputs_and_targets("language_modelling", 5)
    found = task("language_modelling").metrics(
        [float(one) for one in task("language_modelling").totals(outputs, targets)]
    )
    bits = size = 0.0
    for row, wanted in zip(outputs, targets, strict=True):
        for logits, token in zip(row.tolist(), wanted.tolist(), strict=True):
            bits -= math.log2(math.exp(logits[token]) / sum(map(math.exp, logits)))
            size += TOKEN_BYTES.tolist()[token]
    assert found["bits_per_byte"] == pytest.approx(bits / size, rel=1e-6)
    assert found["perplexity"] == pytest.approx(2 ** (bits / targets.numel()), rel=1e-6)


def test_bits_per_byte_are_left_out_where_tokens_have_no_known_bytes():
    data = SimpleNamespace(shape=(3,), classes=4)
    chosen = build_task(TASK["language_modelling"](name="language_modelling"), data)
    totals = [float(one) for one in chosen.totals(*outputs_and_targets("language_modelling", 2))]
    assert tuple(chosen.metrics(totals)) == ("loss", "perplexity")


def test_what_one_rank_does_not_know_is_left_out():
    """Of two ranks of which one has no bytes of its tokens, as where its tokenizer is not installed."""
    outputs, targets = outputs_and_targets("language_modelling", 2)
    other = build_task(TASK["language_modelling"](name="language_modelling"), SimpleNamespace(shape=(3,), classes=4))
    each = [one.totals(outputs, targets) for one in (task("language_modelling"), other)]
    assert "bits_per_byte" not in other.metrics([float(one) + float(two) for one, two in zip(*each, strict=True)])


def test_a_loss_that_is_no_number_has_no_perplexity():
    found = task("language_modelling").metrics([3, math.nan, 3])
    assert math.isnan(found["perplexity"])
    assert task("language_modelling").metrics([1, 1e6, 1])["perplexity"] == math.inf


def test_smoothed_labels_count_in_training_alone():
    outputs, targets = outputs_and_targets("classification", 9)
    smoothed = task("classification", label_smoothing=0.25)
    spread = torch.full((9, 4), 0.25 / 4)
    spread[torch.arange(9), targets] += 0.75
    assert torch.allclose(smoothed.loss(outputs, targets), cross_entropy(outputs, spread))
    assert smoothed.totals(outputs, targets) == task("classification").totals(outputs, targets)


def test_data_of_another_task_are_refused():
    data = SimpleNamespace(shape=(3,), classes=4, task="regression")
    with pytest.raises(UnfitTrialError, match=r"task\.name: found classification, and data for regression"):
        build_task(TASK["classification"](), data)


def test_a_model_may_give_an_object_that_has_logits():
    """As those of Hugging Face's transformers do."""
    model = torch.nn.Linear(3, 2).to(torch.float32)
    wrapped = lambda inputs: SimpleNamespace(logits=model(inputs), loss=None)  # noqa: E731
    options, inputs = MlpOptions(name="mlp"), torch.ones(4, 3)
    assert torch.equal(outputs(wrapped, inputs, options), outputs(model, inputs, options))
