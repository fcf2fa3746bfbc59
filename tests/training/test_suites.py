"""What lqray.testing asks of models and datasets: lqray's own have it, and what lacks it is told."""

import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch

from lqray.experiment import names
from lqray.experiment.options.model import TorchvisionOptions
from lqray.testing import dataset_suite, model_suite
from lqray.training.models import build_model
from tests.testing.dataset_files import WRITERS

_SHAPES = {"resnet": (3, 32, 32), "wide_resnet": (3, 32, 32), "torchvision": (3, 32, 32)}
_OPTIONS = {
    "cnn": {"channels": [4, 8], "hidden": 16},
    "mlp": {"layers": [8]},
    "resnet": {"depth": 8},
    "wide_resnet": {"depth": 10, "width": 1},
    "torchvision": {"architecture": "squeezenet1_1"},
}
for _name in sorted({*names.models()} - {"gpt"}):
    globals()[f"Test_{_name}"] = model_suite(_name, _SHAPES.get(_name, (1, 8, 8)), **_OPTIONS.get(_name, {}))
_SMALL = {"task": "language_modelling", "layers": 2, "heads": 2, "width": 16}
Test_gpt2 = model_suite("gpt", (12,), dropout=0.1, tied=False, vocabulary=64, **_SMALL)
Test_llama = model_suite("gpt", (12,), style="llama", **_SMALL)

_FOLDER = tempfile.TemporaryDirectory()
for _name in ("mnist", "imagenet", "text"):
    WRITERS[_name](Path(_FOLDER.name) / _name, None)
Test_digits = dataset_suite("digits")
Test_gaussian_mixture = dataset_suite("gaussian_mixture", classes=5, dimension=7)
Test_mnist = dataset_suite("mnist", root=f"{_FOLDER.name}/mnist", augmentation="standard")
Test_text = dataset_suite("text", root=f"{_FOLDER.name}/text", context=16)
Test_linear = dataset_suite("linear", dimension=7, train_size=200, test_size=100)
Test_imagenet = dataset_suite("imagenet", root=f"{_FOLDER.name}/imagenet", size=16, loading_processes=0)


def test_a_resnet_for_small_images_keeps_their_size():
    """ResNet-18 for CIFAR-10 has 11,173,962 parameters, as everybody's."""
    options = TorchvisionOptions(name="torchvision", architecture="resnet18", small_images=True)
    with torch.device("meta"):
        network = build_model(options, (3, 32, 32), 10)
        assert network.layer1(network.maxpool(network.conv1(torch.empty(1, 3, 32, 32)))).shape == (1, 64, 32, 32)
    assert sum(one.numel() for one in network.parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"architecture": "vgg11"}, "with a ResNet"), ({"architecture": "resnet18", "pretrained": True}, "one of them")],
)
def test_other_networks_do_not_begin_with_small_images(changes, told):
    options = TorchvisionOptions(name="torchvision", small_images=True, **changes)
    with pytest.raises(ValueError, match=told):
        build_model(options, (3, 32, 32), 10)


def failing(suite: type) -> set[str]:
    """The tests of a suite that a part does not pass."""
    found = set()
    for name in (each for each in dir(suite) if each.startswith("test_")):
        try:
            getattr(suite(), name)()
        except (AssertionError, RuntimeError):
            found.add(name)
    return found


@pytest.fixture
def module(monkeypatch):
    """A module of a user's own, from its text."""

    def made(text: str) -> str:
        module = types.ModuleType("broken_part")
        exec(text, vars(module))
        monkeypatch.setitem(sys.modules, "broken_part", module)
        return "broken_part:made"

    return made


MODEL = """
import random, torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.more()
    def more(self): pass
    def forward(self, x): return self.linear(x.flatten(1))
class Part(Net):
    BODY
def made(options, shape, classes): return Part(classes)
"""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", set()),
        ("def forward(self, x): return super().forward(x)[:, 1:]", {"there_is_a_float32_logit"}),
        ("def forward(self, x): return super().forward(x).double()", {"there_is_a_float32_logit"}),
        ("def more(self): self.unused = nn.Linear(2, 2)", {"every_parameter_gets_a_gradient"}),
        ("def more(self): self.linear.bias.data.fill_(random.random())", {"initial_weights"}),
        (
            "count = 0.0\n    def forward(self, x):\n        self.count += 1.0\n"
            "        return super().forward(x) * (1 + self.count)",
            {"everything_is_in_its_state", "evaluating_changes_nothing"},
        ),
        ("def forward(self, x): return super().forward(x - x.mean(dim=0))", {"in_evaluation_an_input"}),
        (
            "def forward(self, x): return super().forward(x) * (1 + random.random())",
            {"evaluating_changes_nothing", "training_is_a_function"},
        ),
        ("def forward(self, x): return super().forward(x) * float(x.mean() + 1)", {"it_can_be_looked_at"}),
    ],
)
def test_what_a_model_lacks_is_told(module, body, told):
    found = failing(model_suite(module(MODEL.replace("BODY", body))))
    for name in told:
        assert any(each.startswith(f"test_{name}") for each in found), found
    assert bool(found) == bool(told)


DATA = """
import random, torch
from dataclasses import dataclass, replace
from lqray.training.images import ImageClassification, Images
@dataclass(frozen=True)
class Part(ImageClassification):
    BODY
def made(options):
    labels = torch.arange(40) % 4
    generator = torch.Generator().manual_seed(1)
    images = Images(labels.view(-1, 1, 1, 1) + torch.randn(40, 1, 2, 2, generator=generator), labels)
    return Part(images, images, 4, (0.0,), (1.0,))
"""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", set()),
        ("def __post_init__(self): object.__setattr__(self, 'classes', 3)", {"batches_are_of"}),
        (
            "def train_batch(self, chosen, seed):\n        x, y = super().train_batch(chosen, seed)\n"
            "        return x + torch.rand_like(x), y",
            {"a_batch_is_a_function", "torchs_random_state"},
        ),
        (
            "def __post_init__(self): self.train.pixels.add_(random.random())",
            {"loading_it_again"},
        ),
        (
            "def train_batch(self, chosen, seed):\n        x, y = super().train_batch(chosen, seed)\n"
            "        return x.double(), y",
            {"batches_are_of"},
        ),
        (
            "def feed(self, draws):\n        return list(super().feed(draws))[:-1]",
            {"the_feed_is"},
        ),
        (
            "def evaluation(self, split, part, parts, batch_size):\n"
            "        return super().evaluation(split, part, parts + 1, batch_size)",
            {"every_example_is_evaluated_once"},
        ),
        (
            "def evaluation(self, split, part, parts, batch_size):\n"
            "        return super().evaluation(split, part, parts, 2 * batch_size)",
            {"no_batch_of_an_evaluation"},
        ),
        (
            "def to(self, device): return replace(self, train=self.test, mean=(1.0,))",
            {"on_another_device"},
        ),
    ],
)
def test_what_a_dataset_lacks_is_told(module, body, told):
    found = failing(dataset_suite(module(DATA.replace("BODY", body))))
    for name in told:
        assert any(each.startswith(f"test_{name}") for each in found), found
    assert bool(found) == bool(told)


def test_files_that_are_listed_and_not_there_are_told(module, tmp_path):
    listing = f"def data_files(options): return [{str(tmp_path / 'absent')!r}]\n"
    assert failing(dataset_suite(module(DATA.replace("BODY", "pass") + listing))) == {
        "test_the_files_that_it_lists_are_there"
    }
