"""Small GPTs: counts, initial loss and gradients that are known beforehand, and positions that are relative."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lqray.experiment.schema import Trial, model_options
from lqray.training.models import build_model
from lqray.training.models.gpt import GPT, rotary, rotate
from lqray.training.optimizers import build_optimizer
from tests.testing.ranks import run_ranks

STYLES = ["gpt2", "llama"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small gain nothing by a second, and wait for it where there is none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(context: int = 16, classes: int = 100, seed: int = 0, **options) -> GPT:
    small = {"layers": 2, "heads": 2, "width": 32}
    torch.manual_seed(seed)
    return build_model(model_options({"name": "gpt", **small, **options}), (context,), classes)


def tokens(count: int = 4, context: int = 16, classes: int = 100, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, (count, context), generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def loss_of(model: nn.Module, seed: int = 1) -> torch.Tensor:
    inputs, targets = tokens(seed=seed), tokens(seed=seed + 100)
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def test_gpt2_small_has_as_many_parameters_as_it_has():
    """124,439,808 (Radford et al. 2019, as their weights are counted); it is looked at without memory for them."""
    with torch.device("meta"):
        model = built(1024, 50_257, layers=12, heads=12, width=768)
        assert parameters(model) == 124_439_808
        assert model(torch.empty(2, 1024, dtype=torch.int64)).shape == (2, 1024, 50_257)
        assert parameters(built(1024, 50_257, layers=24, heads=16, width=1024)) == 354_823_168  # GPT-2 medium
        wider = built(1024, 50_257, layers=12, heads=12, width=768, vocabulary=50_304)
    assert parameters(wider) == 124_439_808 + 47 * 768


def test_llama_has_as_many_parameters_as_its_definition_says():
    """Embedding and head; in a block four squares, a SwiGLU of 2,752 >= 8/3 * 1,024 units, two norms; a norm."""
    with torch.device("meta"):
        model = built(2048, 32_000, style="llama", layers=12, heads=8, width=1024, tied=False)
    assert parameters(model) == 2 * 32_000 * 1024 + 12 * (4 * 1024**2 + 3 * 2752 * 1024 + 2 * 1024) + 1024
    assert {name for name, _ in model.named_parameters() if "bias" in name or "position" in name} == set()


@pytest.mark.parametrize("style", STYLES)
def test_it_begins_with_the_loss_of_one_that_knows_nothing(style):
    model = built(64, 1000, style=style, layers=4, heads=4, width=64)
    inputs, targets = tokens(16, 64, 1000), tokens(16, 64, 1000, seed=2)
    loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.01)


@pytest.mark.parametrize("style", STYLES)
def test_weights_begin_as_the_docstring_says(style):
    model = built(256, 1000, style=style, layers=8, width=64)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            expected = 0.02 / math.sqrt(16) if name.endswith("output.weight") else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("norm.weight")))), name


@pytest.mark.parametrize("style", STYLES)
def test_the_gradient_of_a_tied_weight_is_of_both_its_uses(style):
    tied, untied = built(style=style), built(style=style, tied=False)
    untied.load_state_dict(tied.state_dict())
    for model in (tied, untied):
        loss_of(model).backward()
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    looked_up, multiplied = untied.embedding.weight.grad, untied.head.weight.grad
    assert looked_up.norm().item() > 0
    assert multiplied.norm().item() > 0
    torch.testing.assert_close(tied.embedding.weight.grad, looked_up + multiplied)
    for (name, one), other in zip(
        tied.blocks.named_parameters(), untied.blocks.parameters(), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("place", [3, 15])
def test_a_token_changes_no_logits_before_it(style, place):
    model, before = built(style=style), tokens()
    after = before.clone()
    after[:, place] = (after[:, place] + 1) % 100
    one, other = model(before), model(after)
    torch.testing.assert_close(one[:, :place], other[:, :place])
    for later in range(place, 16):
        assert not torch.allclose(one[:, later], other[:, later])


def test_rotated_products_depend_on_the_distance_alone():
    """<R(m) q, R(n) k> is a function of m - n (Su et al. 2021), and R(0) is the identity."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator)
    rotation = rotary(torch.arange(40), 8)
    queries, keys = (rotate(one.expand(1, 1, 40, 8), rotation)[0, 0] for one in (query, key))
    scores = queries @ keys.T
    torch.testing.assert_close(scores[7:, 7:], scores[:-7, :-7])
    assert not torch.allclose(scores[7:], scores[:-7])
    torch.testing.assert_close(queries[0], query.flatten())
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(40))


def test_with_rotary_positions_a_text_may_stand_anywhere():
    """The last of some tokens has the same logits wherever they begin, if attention sees no others; with learned
    positions it has not."""
    found = {}
    for style in STYLES:
        model = built(style=style, layers=1)
        repeated = tokens(1, 1).expand(1, 16)  # all keys are alike, up to where they stand
        out = model(repeated)[0]
        found[style] = torch.allclose(out, out[0].expand_as(out), atol=1e-6)
    assert found == {"gpt2": False, "llama": True}


def test_a_padded_vocabulary_has_logits_that_no_token_needs():
    model = built(classes=100, vocabulary=128)
    out = model(tokens())
    assert out.shape == (4, 16, 128)
    assert out.isfinite().all()
    loss_of(model).backward()
    assert model.head.weight.grad[100:].abs().sum() > 0  # they are learned to be improbable
    with pytest.raises(ValueError, match=r"model\.vocabulary: found 99; allowed: at least 100"):
        built(classes=100, vocabulary=99)


def test_biases_are_as_the_style_has_them_or_as_asked():
    def biases(**options) -> int:
        return sum("bias" in name for name, _ in built(**options).named_parameters())

    assert biases(style="gpt2") == 2 * (6 + 2) + 1
    assert biases(style="gpt2", bias=False) == biases(style="llama") == 0
    assert biases(style="llama", bias=True) == 2 * 7


@pytest.mark.parametrize("style", STYLES)
def test_dropout_is_drawn_in_training_alone(style):
    model = built(style=style, dropout=0.3)
    inputs = tokens()
    torch.manual_seed(1)
    one = model(inputs)
    torch.manual_seed(2)
    assert not torch.equal(model(inputs), one)
    torch.manual_seed(1)
    assert torch.equal(model(inputs), one)
    same = built(style=style).eval()
    assert torch.equal(model.eval()(inputs), same(inputs))


@pytest.mark.parametrize("style", STYLES)
def test_in_bfloat16_it_is_about_the_same(style):
    model = built(style=style)
    exact = model(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens())
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.05)
    assert not torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("style", STYLES)
def test_it_learns_a_sequence(style):
    """Whose next token follows from the two before it, not from one."""
    sequence = torch.tensor([0, 1, 0, 2, 1, 1, 2, 2] * 4)
    model = built(31, 3, style=style)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(120):
        optimizer.zero_grad()
        loss = cross_entropy(model(sequence[None, :-1])[0], sequence[1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 < math.log(2) / 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 30, "heads": 4}, "share evenly; found 30 for 4 heads"),
        ({"width": 12, "heads": 4, "style": "llama"}, "even width of each head; found 12 / 4 = 3"),
        ({"vocabulary": 2**24, "width": 2**16}, "vocabulary and width whose weights are at most"),
        ({"style": "gpt3"}, "gpt2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        model_options({"name": "gpt", **options})


def test_images_and_longer_texts_are_refused():
    with pytest.raises(ValueError, match=r"gpt takes tokens.*found data of the shape \(1, 8, 8\)"):
        build_model(model_options({"name": "gpt"}), (1, 8, 8), 10)
    with pytest.raises(ValueError, match="found 17 tokens; allowed: at most 16"):
        built()(tokens(context=17))
    assert built()(tokens(context=5)).shape == (4, 5, 100)


def muon_of(model: nn.Module) -> set[str]:
    """Names of what Muon orthogonalizes."""
    config = {
        "data": {"name": "digits"},
        "model": {"name": "gpt"},
        "optimizer": {"name": "muon", "lr": 0.01},
        "schedule": {"iterations": 1, "batch_size": 1},
        "quantizer": {"method": "full_precision"},
    }
    together = build_optimizer(Trial.model_validate(config).optimizer, model)
    (muon,) = [one for one in together.optimizers if isinstance(one, torch.optim.Muon)]
    chosen = {id(weight) for group in muon.param_groups for weight in group["params"]}
    return {name for name, weight in model.named_parameters() if id(weight) in chosen}


@pytest.mark.parametrize("style", STYLES)
def test_muon_takes_the_matrices_of_blocks_and_no_embedding(style):
    """A head that is tied counts as the embedding that it is; queries, keys and values are matrices of their own."""
    model = built(style=style)
    expected = {f"blocks.{name}" for name, weight in model.blocks.named_parameters() if weight.ndim == 2}
    assert muon_of(model) == expected
    assert {f"blocks.0.attention.{one}.weight" for one in ("query", "key", "value", "output")} < expected


def gradients_of(rank: int, world: int, style: str) -> dict[str, np.ndarray]:
    model = DistributedDataParallel(built(style=style))
    for step in range(2):
        model.zero_grad()
        loss_of(model, seed=1 + step * world + rank).backward()
    return {name: weight.grad.numpy() for name, weight in model.module.named_parameters()}


@pytest.mark.processes
@pytest.mark.parametrize("style", STYLES)
def test_under_ddp_gradients_are_the_mean_of_the_ranks(style):
    first, second = run_ranks(gradients_of, 2, 2, style)
    model = built(style=style)
    ((loss_of(model, 3) + loss_of(model, 4)) / 2).backward()
    for name, weight in model.named_parameters():
        np.testing.assert_allclose(first[name], weight.grad, rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.array_equal(first[name], second[name])
