"""What can be known before the first trial is said before it, in words that name the key; by a dry run, too."""

import shutil
import subprocess
import sys

import pytest

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Resources, Trial
from lqray.orchestration.launchers.placement import PlacementError, concurrent_trials
from lqray.orchestration.plan import feasible
from lqray.orchestration.plan.feasible import check_places, check_trials, loopback_problem

CONFIG = {
    "data": {"name": "digits"},
    "model": {"name": "cnn"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 1, "batch_size": 4},
    "workers": 2,
    "quantizer": {"method": "qsgd", "bucket_size": 64},
}


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch):
    monkeypatch.setattr(feasible, "_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(feasible, "_gpus", lambda: 1.0)


def trial(**changes) -> Trial:
    return Trial.model_validate(CONFIG | changes)


def named(**changes) -> list[NamedTrial]:
    return [NamedTrial("one", trial(**changes))]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            {"memory_gib_per_process": 1000},
            r"needs 2,000 GiB of memory, this machine has 8; lower .*memory_gib_per_proc",
        ),
        ({"gpus_per_process": 1}, r"needs 2 GPUs, this machine has 1; lower resources\.gpus_per_process"),
        ({"gpus_per_process": 0.6}, r"needs 1\.2 GPUs, this machine has 1"),
        ({"processes": 3}, r"resources\.processes is 3; allowed: 1, 2,"),
    ],
)
def test_what_a_machine_can_never_give(monkeypatch, resources, said):
    with pytest.raises(PlacementError, match=said):
        check_places([trial()], Resources(**resources), inline=False)
    if "processes" not in resources:
        check_places([trial()], Resources(**resources), inline=False, elsewhere=lambda: True)  # which may have it


def test_a_machine_whose_loopback_interface_is_down():
    script = (
        "from lqray.orchestration.plan.feasible import loopback_problem; "
        "from lqray.orchestration.doctor.local import _loopback; print(loopback_problem(), _loopback().state)"
    )
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    there = subprocess.run([*alone, sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert there.startswith("127.0.0.1 cannot be reached (Network is unreachable)")
    assert there.endswith("(ip link set lo up) broken\n")
    assert loopback_problem() is None


def test_more_processes_than_memory_could_hold():
    with pytest.raises(PlacementError, match=r"5000 processes here, and this machine's 8 GiB .* at most 80"):
        check_places([trial(workers=5000)], Resources(), inline=True)
    check_places([trial(workers=5000)], Resources(processes=2), inline=True)


def test_inline_sets_no_memory_aside():
    check_places([trial()], Resources(memory_gib_per_process=1000), inline=True)


def test_of_a_machine_whose_gpus_nobody_knows_nothing_is_said(monkeypatch):
    monkeypatch.setattr(feasible, "_gpus", lambda: None)
    check_places([trial()], Resources(gpus_per_process=4), inline=False)


def test_a_cluster_without_enough_memory_is_told_in_gib():
    need = {"CPU": 2.0, "memory": 4 * 2**30}
    with pytest.raises(
        PlacementError, match=r"needs 4 GiB of memory, the cluster has 1\.5; lower resources\.memory_gib"
    ):
        concurrent_trials(need, {"CPU": 8.0, "memory": 1.5 * 2**30}, Resources())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": {"iterations": 1, "batch_size": 5000}}, r"schedule\.batch_size: found 5000 .* at most 1,437"),
        ({"exchange": {"skip": ["layer9.*"]}}, r"exchange\.skip: no parameter is called 'layer9\.\*'; allowed"),
        ({"model": {"name": "torchvision", "architecture": "resnet8"}}, r"model\.architecture is 'resnet8'.*resnet18"),
        ({"model": {"name": "torchvision", "architecture": "resnet18"}}, "images of 3 channels; these have 1"),
        (
            {"model": {"name": "torchvision", "architecture": "alexnet"}, "data": {"name": "cifar10"}},
            r"does not take data of shape \(3, 32, 32\)",
        ),
    ],
)
def test_trials_that_could_not_begin(changes, said):
    """Also where nothing else needs torch: these trials name what only torch knows."""
    with pytest.raises(UnfitTrialError, match=f"(?s)trial one: .*{said}"):
        check_trials(named(**changes), thorough=False)


def test_a_pattern_that_nobody_looks_at_is_no_error():
    check_trials(named(exchange={"skip": ["layer9.*"]}, quantizer={"method": "full_precision"}), thorough=True)


def test_trials_that_can_begin_need_no_torch():

    code = (
        "import sys; from tests.orchestration.plan.test_feasible import named; "
        "from lqray.orchestration.plan.feasible import check_trials; from lqray.training import known_data; "
        "before = 'torch' in sys.modules; check_trials(named(), thorough=False); "
        "assert before == ('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pretrained_weights_are_not_fetched_to_look_at_a_network(monkeypatch):
    from lqray.training import vision

    asked = []
    original = vision.torchvision.models.get_model
    monkeypatch.setattr(
        vision.torchvision.models,
        "get_model",
        lambda name, **how: asked.append(how["weights"]) or original(name, **how),
    )
    model = {"name": "torchvision", "architecture": "resnet18", "pretrained": True}
    check_trials(named(model=model, data={"name": "cifar100"}), thorough=True)
    assert set(asked) == {None}
