"""The runs of an experiment: MLflow's tables and MLflow's search say the same."""

import time

from mlflow import MlflowClient

from lqray.store.client import reading_client
from lqray.store.runs import _from_search, _from_tables, latest_runs, param_values
from lqray.store.tables import connected


def both_ways(uri, *wanted):
    """The runs of experiment e, from the tables and from MLflow's search."""
    with connected(uri) as connection:
        tables = list(_from_tables(connection, "e", *wanted))
    search = list(_from_search(reading_client(uri), "e", *wanted))
    return [sorted(runs, key=lambda run: run.run_id) for runs in (tables, search)]


def test_states_from_the_tables_are_those_of_mlflows_search(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    assert latest_runs(uri, "e") == {}
    assert param_values(uri, "e", "p") == set()
    assert not (tmp_path / "runs.db").exists()
    client = MlflowClient(uri)
    experiment = client.create_experiment("e")
    for number in range(6):
        tags = {"lqray.trial_id": f"{number % 4}", "lqray.trial_name": f"n{number}", "lqray.extra": "x", "other": "y"}
        run = client.create_run(experiment, tags=tags, run_name="r").info.run_id
        client.set_terminated(run, ["FINISHED", "FAILED", "KILLED"][number % 3])
        time.sleep(0.002)
    client.create_run(experiment, run_name="of another tool")
    client.delete_run(client.create_run(experiment, tags={"lqray.trial_id": "9"}).info.run_id)
    found = latest_runs(uri, "e", ["lqray.extra"])
    assert sorted(found) == ["0", "1", "2", "3"]
    assert found["1"].name == "n5"
    assert found["1"].tags == {"lqray.trial_id": "1", "lqray.trial_name": "n5", "lqray.extra": "x"}
    tables, search = both_ways(uri, ["lqray.trial_id", "lqray.extra"], ["m"], False)
    assert tables == search
    client.log_metric(found["2"].run_id, "m", 1.0, step=1)
    client.log_metric(found["2"].run_id, "m", 0.5, step=2)
    client.log_metric(found["3"].run_id, "n", float("inf"))
    client.log_param(found["3"].run_id, "p", "q")
    client.set_tag(found["3"].run_id, "lqray.nan_metrics", "m,o")
    for wanted in ((None, None, True), (["lqray.trial_id"], ["m"], False), (["lqray.trial_id"], (), True)):
        tables, search = both_ways(uri, *wanted)
        assert list(map(repr, tables)) == list(map(repr, search))  # in which NaN is equal to NaN
    assert latest_runs(uri, "e", [], ["m"])["2"].metrics == {"m": 0.5}


def test_what_a_param_is_in_the_runs_of_an_experiment(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/runs.db"
    client = MlflowClient(uri)
    of_each = {"e": ["a", "b", "a"], "other": ["c"]}
    for name, values in of_each.items():
        experiment = client.create_experiment(name)
        for value in values:
            run = client.create_run(experiment, tags={"lqray.trial_id": "1"})
            client.log_param(run.info.run_id, "p", value)
    assert param_values(uri, "e", "p") == {"a", "b"}
    assert param_values(uri, "e", "q") == set()
    monkeypatch.setattr("lqray.store.tables.read", lambda uri, tables, search: search(reading_client(uri)))
    assert param_values(uri, "e", "p") == {"a", "b"}
    assert param_values(uri, "e", "q") == set()
