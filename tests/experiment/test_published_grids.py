"""The grids of the paper's research code, as files: how many runs they have, what those share, what they are called."""

from collections import Counter
from pathlib import Path

import pytest

from lqray.experiment.grid import read_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
# combinations, as many as the original's runs; trials, where some combinations are the same one
GRIDS = {
    "cifar10_full_resnet110": (9, 9),
    "cifar10_full_resnet32": (9, 9),
    "cifar10_full_resnet8": (11, 11),
    "imagenet_half": (12, 12),
    "imagenet_full": (9, 9),
    "mnist": (19, 19),
    "bucket_size": (112, 112),
    "bits": (62, 57),  # terngrad has a width of its own
    "interval": (32, 26),  # qsgd_inf, terngrad and nuqsgd never update their levels
}
SEVEN = {"amq_n", "amq", "alq_n", "alq", "qsgd_inf", "terngrad", "nuqsgd"}


@pytest.mark.parametrize("name", GRIDS)
def test_runs_of_a_grid(name):
    experiment = read_experiment(EXPERIMENTS / f"{name}.yaml")
    trials = list(experiment.trials())
    assert experiment.name == name
    assert (sum(1 for _ in experiment.combinations()), len(trials)) == GRIDS[name]
    assert len({named.name for named in trials}) == len({named.trial.id for named in trials}) == len(trials)
    assert max(len(named.name) for named in trials) <= 55


def parts(name: str) -> tuple[list, Counter]:
    trials = [named.trial for named in read_experiment(EXPERIMENTS / f"{name}.yaml").trials()]
    return trials, Counter(trial.quantizer.method for trial in trials)


@pytest.mark.parametrize("name", sorted(set(GRIDS) - {"mnist"}))
def test_what_the_runs_of_the_adaptive_grids_share(name):
    trials, methods = parts(name)
    assert set(methods) >= SEVEN | {"sgd", "full_precision"}
    assert (methods["sgd"], methods["full_precision"]) == (1, 1)
    for trial in trials:
        assert trial.workers == (1 if trial.quantizer.method == "sgd" else 4)
        assert (trial.optimizer.lr, trial.optimizer.momentum, trial.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
        half, three_quarters = trial.schedule.decay_at
        assert (half * 2, three_quarters * 4) == (trial.schedule.iterations, trial.schedule.iterations * 3)
        if trial.quantizer.method in SEVEN:
            assert trial.quantizer.tail == "full_precision"
        if hasattr(trial.quantizer, "update_at"):
            assert trial.quantizer.update_at[0] == 0
            assert trial.quantizer.samples == 10
    trajectories = {trial.exchange.trajectory for trial in trials}
    assert trajectories == {"full_precision" if name in ("imagenet_half", "bucket_size") else "quantized"}


@pytest.mark.parametrize("name", ["imagenet_half", "bucket_size", "bits", "interval"])
def test_alq_comes_in_four_variants(name):
    trials, methods = parts(name)
    alq = Counter((t.quantizer.symmetric, t.quantizer.solver) for t in trials if t.quantizer.method == "alq")
    assert set(alq) == {(s, way) for s in (False, True) for way in ("newton", "coordinate")}
    assert len(set(alq.values())) == 1
    assert methods["alq"] == 4 * methods["amq"]


def test_axes_of_the_ablations():
    def values(name, key):
        return {getattr(trial.quantizer, key) for trial in parts(name)[0] if trial.quantizer.method == "alq"}

    assert values("bucket_size", "bucket_size") == {16} | {2**power for power in range(6, 16)}
    assert values("bits", "bits") == {2, 3, 4, 5, 6, 7}
    assert values("interval", "update_at") == {(0,), (0, 40000, 60000), (0, 100, 1000, 2000, 40000, 60000)}
    assert {
        trial.quantizer.update_every for trial in parts("interval")[0] if hasattr(trial.quantizer, "update_every")
    } == {80000}


def test_the_mnist_grid():
    trials, methods = parts("mnist")
    assert methods == {"sgd": 1, "qsgd": 6, "qsgd_inf": 6, "nuqsgd": 6}
    assert {trial.workers for trial in trials if trial.quantizer.method == "qsgd"} == {2, 4}
    assert {(t.schedule.epochs, t.optimizer.momentum, t.optimizer.weight_decay) for t in trials} == {(30, 0.0, 0.0)}
