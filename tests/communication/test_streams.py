"""Futures of two exchanges, and of both."""

import pytest
import torch
from torch.futures import Future

from lqray.communication.streams import after_all


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_it_waits_for_both_in_whatever_order_they_end(order):
    parts = Future(), Future()
    both = after_all(parts, lambda one, other: torch.cat([one, other]), torch.device("cpu"))
    for done, number in enumerate(order):
        assert both.done() == (done == 2)
        parts[number].set_result(torch.tensor([number]))
    assert both.wait().tolist() == [0, 1]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_either_arrives(failing):
    parts = Future(), Future()
    both = after_all(parts, lambda one, other: one, torch.device("cpu"))
    parts[failing].set_exception(RuntimeError("a rank is lost"))
    parts[1 - failing].set_result(torch.zeros(1))
    with pytest.raises(RuntimeError, match="a rank is lost"):
        both.wait()


def test_the_error_of_putting_them_together_arrives():
    parts = Future(), Future()
    both = after_all(parts, lambda one, other: torch.cat([one, other, 1]), torch.device("cpu"))
    for part in parts:
        part.set_result(torch.zeros(1))
    with pytest.raises(Exception, match="expected Tensor"):
        both.wait()
