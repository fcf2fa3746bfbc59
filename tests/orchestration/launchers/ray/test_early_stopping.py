"""Early stopping remembers what trials of earlier launches had reached, and stops what is not a number."""

import math
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from lqray.experiment.options.search import EarlyStopping
from lqray.orchestration.launchers.ray.early_stopping import RememberingHalving
from lqray.store.evaluations import Evaluation, stored_evaluations
from tests.testing.small import empty_store

STOPPING = EarlyStopping(metric="test/accuracy", mode="max", grace_period=40, reduction_factor=2)


def started(trial_id, start=0):
    """As Tune knows it: by an id of its own for every start."""
    return SimpleNamespace(trial_id=f"tune-{trial_id}-{start}", config={"task": SimpleNamespace(trial_id=trial_id)})


def said(scheduler, trial, iteration, value, metric="test/accuracy"):
    return scheduler.on_trial_result(None, trial, {"iteration": iteration, metric: value})


def run(scheduler, trial_id, values, start=0) -> int | None:
    """After how many iterations a trial is stopped, which is evaluated every 20; None: never."""
    trial = started(trial_id, start)
    scheduler.on_trial_add(None, trial)
    for iteration, value in values:
        if said(scheduler, trial, iteration, value) == "STOP":
            scheduler.on_trial_remove(None, trial)
            return iteration
    scheduler.on_trial_complete(None, trial, {"done": True})
    return None


GOOD = [(iteration, 0.5 + iteration / 1000) for iteration in range(20, 201, 20)]
BAD = [(iteration, 0.1) for iteration in range(20, 201, 20)]


def test_a_trial_that_continues_is_judged_by_what_an_earlier_launch_recorded():
    undisturbed = RememberingHalving(STOPPING)
    assert run(undisturbed, "good", GOOD) is None
    assert run(undisturbed, "bad", BAD) == 40
    earlier = [Evaluation("good", *one, time=1) for one in GOOD] + [Evaluation("bad", 20, 0.1, time=2)]
    resumed = RememberingHalving(STOPPING, earlier)
    assert run(resumed, "bad", BAD[1:], start=1) == 40


def test_what_a_trial_had_passed_before_it_was_interrupted_it_need_not_pass_again():
    earlier = [Evaluation("bad", *one, time=one[0]) for one in BAD[:4]]
    earlier += [Evaluation("good", *one, time=1000 + one[0]) for one in GOOD]
    resumed = RememberingHalving(STOPPING, earlier)
    assert run(resumed, "good", GOOD[5:], start=1) is None
    assert run(resumed, "bad", BAD[4:], start=1) == 160  # the next rung, which the good one has passed


def test_a_trial_interrupted_at_the_evaluation_that_stops_it_is_stopped():
    earlier = [Evaluation("good", *one, time=one[0]) for one in GOOD]
    earlier += [Evaluation("bad", *one, time=1000 + one[0]) for one in BAD[:2]]
    assert run(RememberingHalving(STOPPING, earlier), "bad", BAD[2:], start=1) == 60


@pytest.mark.parametrize(
    ("mode", "value"), [("max", math.nan), ("min", math.nan), ("max", -math.inf), ("min", math.inf)]
)
def test_what_is_not_a_number_is_the_worst_there_is(mode, value):
    scheduler = RememberingHalving(STOPPING.model_copy(update={"mode": mode}))
    assert run(scheduler, "nan", [(20, value), (40, value)]) == 40  # though it is alone
    assert run(scheduler, "first", [(40, 0.5)]) is None  # above the median of itself and the worst
    assert run(scheduler, "second", [(40, 0.5)]) is None
    worse = 0.4 if mode == "max" else 0.6
    assert run(scheduler, "worse", [(40, worse)]) == 40


@pytest.mark.parametrize("brackets", [1, 3])
def test_a_trial_is_in_the_same_bracket_at_every_start(brackets):
    stopping = STOPPING.model_copy(update={"brackets": brackets})
    ones, others = (RememberingHalving(stopping) for _ in range(2))
    names = [f"{number:04x}" for number in range(60)]
    chosen = [ones._brackets.index(ones._bracket(name)) for name in names]
    assert chosen == [others._brackets.index(others._bracket(name)) for name in names]
    assert len(set(chosen)) == brackets


def test_a_metric_that_is_not_reported_decides_nothing():
    scheduler = RememberingHalving(STOPPING)
    assert said(scheduler, started("a"), 100, 0.1, "train/loss") == "CONTINUE"


def test_evaluations_come_from_the_store_in_the_order_in_which_they_were_made(tmp_path):
    client = MlflowClient(empty_store(tmp_path / "runs.db"))
    experiment = client.create_experiment("e")
    runs = {name: client.create_run(experiment).info.run_id for name in ("a", "b")}
    client.log_metric(runs["a"], "test/loss", 2.0, timestamp=5000, step=20)
    client.log_metric(runs["b"], "test/loss", 1.0, timestamp=4000, step=20)
    client.log_metric(runs["a"], "test/loss", math.inf, timestamp=6000, step=40)
    client.log_metric(runs["a"], "train/loss", 1.0, timestamp=1000, step=1)
    assert stored_evaluations(client, runs, "test/loss") == [
        Evaluation("b", 20, 1.0, 4000),
        Evaluation("a", 20, 2.0, 5000),
        Evaluation("a", 40, math.inf, 6000),
    ]
