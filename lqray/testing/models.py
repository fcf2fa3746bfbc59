"""What holds of every model: what training, its checkpoints and its evaluation take for granted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lqray.experiment.parts import is_reference
from lqray.experiment.schema import model_options
from lqray.training.models import build_model


def model_suite(
    name: str, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, task: str = "classification", **options: Any
) -> type:
    """A class of tests of the model that `model: {name: ...}` builds for inputs of `shape`, (channels, height, width),
    and `classes` logits. With the task language_modelling inputs are tokens below `classes`, of the shape (context,),
    and there are at least so many logits for each. options: of lqray's model, or what stands below `model.options` for
    one of a user's own."""
    config = {"name": name, "options": options} if is_reference(name) else {"name": name, **options}
    suite = _LanguageModelSuite if task == "language_modelling" else _ModelSuite
    return type("ModelSuite", (suite,), {"config": config, "shape": shape, "classes": classes})


class _ModelSuite:
    config: dict[str, Any]
    shape: tuple[int, ...]
    classes: int

    def made(self, seed: int = 1) -> nn.Module:
        torch.manual_seed(seed)
        return build_model(model_options(self.config), self.shape, self.classes)

    def inputs(self, count: int = 6) -> Tensor:
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(7))

    def loss(self, model: nn.Module) -> Tensor:
        return cross_entropy(model(self.inputs()), torch.arange(6) % self.classes)

    def fits(self, out: Tensor, count: int) -> bool:
        return out.shape == (count, self.classes)

    def test_there_is_a_float32_logit_for_each_class_of_each_input(self) -> None:
        for count in (2, 5):
            out = self.made()(self.inputs(count))
            assert self.fits(out, count), f"{count} inputs give outputs of the shape {tuple(out.shape)}"
            assert out.dtype == torch.float32
            assert out.isfinite().all()

    def test_initial_weights_are_a_function_of_torchs_seed_alone(self) -> None:
        random.seed(1)
        np.random.seed(1)
        one = self.made().state_dict()
        random.seed(2)
        np.random.seed(2)
        other = self.made().state_dict()
        assert list(one) == list(other)
        for name in one:
            assert torch.equal(one[name], other[name]), f"{name} differs between two models of one seed of torch's"

    def test_every_parameter_gets_a_gradient(self) -> None:
        """DDP waits for all of them."""
        model = self.made()
        self.loss(model).backward()
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert trained, "no parameter is trained"
        for name, weight in trained.items():
            assert weight.grad is not None, f"{name} has no part in the outputs"
            assert weight.grad.isfinite().all(), f"the gradient of {name} is not finite"

    def test_training_is_a_function_of_torchs_seed(self) -> None:
        one, other = self._trained(), self._trained()
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), f"{name} differs after two equal steps"

    def test_everything_is_in_its_state(self) -> None:
        """A checkpoint has nothing else of it."""
        trained, fresh = self._trained(), self.made(seed=2)
        fresh.load_state_dict(trained.state_dict())
        with torch.no_grad():
            assert torch.equal(trained.eval()(self.inputs()), fresh.eval()(self.inputs()))

    def test_evaluating_changes_nothing(self) -> None:
        model = self._trained().eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            one, other = model(self.inputs()), model(self.inputs())
        assert torch.equal(one, other)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), f"evaluating changes {name}"

    def test_in_evaluation_an_input_is_answered_alone(self) -> None:
        """How many processes share the test set is not to matter."""
        model = self._trained().eval()
        with torch.no_grad():
            together = model(self.inputs())
            alone = torch.cat([model(one[None]) for one in self.inputs()])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)

    def test_it_can_be_looked_at_without_memory_for_its_numbers(self) -> None:
        """As before the first trial, when sizes and shapes are checked."""
        with torch.device("meta"):
            model = build_model(model_options(self.config), self.shape, self.classes)
            assert self.fits(model(torch.empty(2, *self.shape, dtype=self.inputs(2).dtype)), 2)
        sizes = [weight.shape for weight in model.parameters()]
        assert sizes == [weight.shape for weight in self.made().parameters()]

    def _trained(self) -> nn.Module:
        model = self.made()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            self.loss(model).backward()
            optimizer.step()
        return model


class _LanguageModelSuite(_ModelSuite):
    def inputs(self, count: int = 6) -> Tensor:
        return torch.randint(self.classes, (count, *self.shape), generator=torch.Generator().manual_seed(7))

    def loss(self, model: nn.Module) -> Tensor:
        targets = self.inputs().roll(-1, dims=1)
        return cross_entropy(model(self.inputs()).flatten(0, 1), targets.flatten())

    def fits(self, out: Tensor, count: int) -> bool:
        return out.shape[:2] == (count, *self.shape) and out.ndim == 3 and out.shape[2] >= self.classes

    def test_no_token_is_predicted_from_those_that_follow_it(self) -> None:
        model, tokens = self.made().eval(), self.inputs()
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 1) % self.classes
        with torch.no_grad():
            before, after = model(tokens), model(changed)
        torch.testing.assert_close(after[:, :-1], before[:, :-1])
        assert not torch.equal(after[:, -1], before[:, -1]), "the last token has no part in its outputs"
