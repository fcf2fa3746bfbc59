"""Requests of one process to another's launch."""

import dataclasses

import pytest
from mlflow import MlflowClient

from lqray.experiment.grid import read_experiment
from lqray.experiment.plan import PublishedPlan, plan_tags
from lqray.orchestration.launch import _wanted
from lqray.orchestration.queue.control import ControlRequests, ask_to_stop, file_of, publish_plan
from lqray.store.launches import Launch
from tests.testing.small import write


@pytest.fixture
def launch(tmp_path):
    path = write(tmp_path)
    uri = f"sqlite:///{tmp_path}/lqray.db"
    identifier = MlflowClient(uri).create_experiment("small")
    return Launch(uri, "small", identifier, "one", str(path), path.read_text())


def asked(requests) -> list[str]:
    return [why for _, why in requests.stops()]


def test_requests_to_stop_do_not_take_each_others_place(launch):
    ask_to_stop(launch.uri, launch.experiment_id, "before")
    requests = ControlRequests(launch)
    ask_to_stop(launch.uri, launch.experiment_id, "alq*")
    ask_to_stop(launch.uri, launch.experiment_id, "full*")
    trials = list(read_experiment(launch.file).trials())
    chosen = [chosen for chosen, why in requests.stops() if why == "lqray stop"]
    assert len(chosen) == 2
    assert all(any(one(named) for one in chosen) for named in trials)
    assert asked(requests) == []
    MlflowClient(launch.uri).set_experiment_tag(launch.experiment_id, "lqray.stop.x", "nonsense")
    assert asked(requests) == []


def test_a_deleted_experiment_is_the_wish_to_stop_everything(launch):
    requests = ControlRequests(launch)
    MlflowClient(launch.uri).delete_experiment(launch.experiment_id)
    assert asked(requests) == ["its experiment was deleted"]
    assert asked(requests) == []


def test_an_edited_file_drops_trials_and_another_file_of_its_name_does_not(launch, caplog):
    requests = ControlRequests(launch)
    publish_plan(launch)
    assert asked(requests) == []
    assert requests.newer_plan() is None  # its own
    text = launch.source.replace("[full_precision, alq]", "[alq]")
    newer = dataclasses.replace(launch, launch_id="two", source=text)
    publish_plan(newer)
    assert asked(requests) == []
    found = requests.newer_plan()
    wanted, why = _wanted(found, launch)
    names = [named.name for named in read_experiment(launch.file).trials() if wanted(named)]
    assert names == ["alq"]
    assert why == f"{launch.file} was launched again without it"

    publish_plan(dataclasses.replace(newer, launch_id="three", file="/somewhere/else.yaml"))
    assert asked(requests) == []
    assert _wanted(requests.newer_plan(), launch) is None
    assert "another launch runs another file of the name small" in caplog.text


def test_what_an_earlier_version_published_is_taken_back(launch):
    client = MlflowClient(launch.uri)
    for key in ("lqray.plan", "lqray.plan.d.0", "lqray.planned"):
        client.set_experiment_tag(launch.experiment_id, key, "x")
    publish_plan(launch)
    kept = client.get_experiment(launch.experiment_id).tags
    assert [key for key in kept if not key.startswith("mlflow.")] == ["lqray.planned"]


def test_a_file_of_more_trials_than_there_are_atoms_holds_nobody_up(launch, caplog):
    """Before, the watcher of a running launch made them all."""
    seeds, layers = list(range(2000)), [[width] for width in range(1, 2000)]
    text = launch.source.replace("[full_precision, alq]", f"[alq], seed: {seeds}, model.layers: {layers}")
    plan = PublishedPlan("two", text, file_of(launch))
    assert _wanted(plan, launch) is None
    assert "too many to look for" in caplog.text


def test_a_damaged_plan_does_not_disturb_a_launch(launch, caplog):
    requests = ControlRequests(launch)
    client = MlflowClient(launch.uri)
    for key, value in plan_tags("two", launch.source, file_of(launch)).items():
        client.set_experiment_tag(launch.experiment_id, key, value[:-9])
    assert asked(requests) == []
    assert requests.newer_plan() is None
    assert "are damaged" in caplog.text
