"""A seeded sample of the acts of a sweep, each failing in one way; `python -m tests.faults` runs all of them."""

import random

import pytest

from tests.faults.acts import MODES, Fault
from tests.faults.cases import Sweeps

_CASES = 32
_RANDOM = random.Random(20261126)
_SAMPLE = [
    (MODES[index % len(MODES)], (index // len(MODES) + _RANDOM.random()) / (_CASES // len(MODES)))
    for index in range(_CASES)
]  # every mode, spread evenly over the sweep


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    with Sweeps(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.mark.processes
@pytest.mark.parametrize(("mode", "place"), _SAMPLE, ids=[f"{mode}-{place:.2f}" for mode, place in _SAMPLE])
def test_a_fault_costs_nothing_that_is_recorded(sweeps, mode, place):
    outcome = sweeps.case(Fault(mode, 1 + int(place * len(sweeps.acts))))
    assert not outcome.wrong, f"{outcome}\n{outcome.output}"


@pytest.mark.processes
def test_an_undisturbed_sweep_is_found_to_be_right_and_a_changed_one_not(sweeps):
    """The proof can fail: a run that lost a point, or has one twice, is seen."""
    outcome = sweeps.case(Fault())
    assert not outcome.wrong, str(outcome)
