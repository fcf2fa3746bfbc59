"""What a run's result comes from beside its configuration, recorded and compared."""

import pytest
from mlflow import MlflowClient

from lqray.experiment.grid import read_experiment
from lqray.orchestration.origins import NAMES, continued
from lqray.orchestration.plan.plan import RunOptions, make_plan
from lqray.store.runs import latest_runs
from lqray.store.tags import DATA, PARTS
from lqray.training import data_files
from tests.testing import small
from tests.testing.dataset_files import write_idx


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data_files, "_known", {})
    write_idx(tmp_path / "set")
    text = small.TEXT.replace("{name: gaussian_mixture}", f"{{name: fashion_mnist, root: {tmp_path / 'set'}}}")
    return small.write(tmp_path, text=text.replace("iterations: 30", "iterations: 10"))


def said(experiment) -> str:
    return make_plan(read_experiment(experiment), RunOptions("inline")).said_of_others


def tags(experiment) -> list[dict[str, str]]:
    runs = latest_runs(f"sqlite:///{experiment.parent}/lqray.db", "small", tuple(NAMES), [])
    return [run.tags for run in runs.values()]


def test_other_data_are_told_and_recorded_when_a_trial_runs_again(experiment, tmp_path):
    _, ran = small.launch(experiment)
    assert [result.status for result in ran.results] == ["FINISHED"] * 2
    (first,) = {one[DATA] for one in tags(experiment)}
    assert said(experiment) == ""
    labels = tmp_path / "set" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\7")
    assert said(experiment) == " (2 finished with other data: --rerun)"
    labels.rename(tmp_path / "elsewhere")
    assert said(experiment) == ""
    (tmp_path / "elsewhere").rename(labels)
    small.launch(experiment, rerun=True, only=("full_precision",))
    assert said(experiment) == " (1 finished with other data: --rerun)"
    assert len({one[DATA] for one in tags(experiment)}) == 2
    assert first in {one[DATA] for one in tags(experiment)}
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    for run in client.search_runs([client.get_experiment_by_name("small").experiment_id]):
        client.set_tag(run.info.run_id, PARTS, "2:000000000000")
    assert said(experiment) == " (2 finished with other code, 1 finished with other data: --rerun)"


def test_files_that_came_with_the_trial_are_recorded_at_its_end(experiment, monkeypatch):
    from lqray.orchestration.recording import recorder

    monkeypatch.setattr(recorder, "origins", lambda trial: {PARTS: "2:0"})
    small.launch(experiment)
    assert all(one[DATA].startswith("1:") for one in tags(experiment))


def test_a_run_that_goes_on_keeps_what_it_had():
    assert continued({PARTS: "a", "other": "x"}, {PARTS: "2:b", DATA: "1:c"}) == {PARTS: "a,2:b"}
    assert continued({PARTS: "2:b", DATA: "1:c"}, {PARTS: "2:b"}) == {PARTS: "2:b", DATA: "1:c"}
