"""Every name that a trial ever had finds it: axes that are added to a file change what its trials are called."""

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.choice import NothingChosenError, check_chosen
from lqray.experiment.grid import experiment_from_text
from lqray.experiment.plan import plan_tags
from lqray.reporting.finding import find_run
from lqray.reporting.planned import Recorded
from lqray.reporting.report import ReportOptions, make_report
from lqray.store.runs import UnknownRunError, recorded_names
from tests.testing.experiments import KNOWN
from tests.testing.reports import report
from tests.testing.stores import Store

OLD = f"{KNOWN}sweep: [{{matrix: {{exchange.bucket_cap_mb: [8, 16]}}}}]\n"
NEW = OLD.replace("bucket_cap_mb: [8, 16]}", "bucket_cap_mb: [8, 16], optimizer.lr: [0.1, 0.2]}")
"""Of the same trials the names are others, and there are more of them."""


def named(text):
    return {one.trial.id: one for one in experiment_from_text(text, "known.yaml").trials()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two trials, recorded when the file was OLD, of which NEW was launched last; the first was once recorded, and
    failed, under a name of an earlier lqray."""
    made = Store(tmp_path_factory.mktemp("names"))
    trials = list(named(OLD).values())
    for number, one in enumerate(trials):
        tags = {"lqray.trial_id": one.trial.id}
        for attempt, name in enumerate(["everyNone-first", one.name] if not number else [one.name], 1):
            status = "FINISHED" if name == one.name else "FAILED"
            own = tags | {"lqray.attempt": str(attempt)}
            made.run("", 1, [0.5], status, params=one.trial.params(), tags=own, name=name)
    for key, value in plan_tags("launch", NEW).items():
        made.client.set_experiment_tag(made.number, key, value)
    return made


@pytest.fixture(scope="module")
def first(store):
    """(id of the first trial, all names that it has had, the present one first)."""
    trial = next(iter(named(OLD)))
    return trial, [named(NEW)[trial].name, named(OLD)[trial].name, "everyNone-first"]


def test_an_added_axis_changes_names_and_the_old_ones_still_choose(store, first):
    trial, names = first
    assert len(set(names)) == 3
    for pattern in (*names, names[1][:-1] + "?", "everyNone*", trial, trial[:6]):
        chosen = make_report([Recorded("known", store.uri)], ReportOptions(only=[pattern])).records
        assert trial in {one.trial_id for one in chosen}, pattern
        assert all(one.name in {each.name for each in named(NEW).values()} for one in chosen)
    (record,) = make_report([Recorded("known", store.uri)], ReportOptions(only=["everyNone-first"])).records
    assert record.names == tuple(names)
    assert record.status == "FINISHED"


def test_one_run_is_found_by_every_name_and_it_is_that_of_the_last_attempt(store, first):
    trial, names = first
    for name in (*names, trial, trial[:5]):
        found = find_run(store.uri, name)
        assert (found.trial_id, found.attempt, found.status) == (trial, 2, "FINISHED"), name
        assert find_run(store.uri, name, Recorded("known", store.uri)).run_id == found.run_id
        file = experiment_from_text(NEW, "known.yaml")
        assert find_run(store.uri, name, Recorded("known", store.uri, file)).run_id == found.run_id
    failed = next(one for one in store.client.search_runs([store.number]) if one.info.status == "FAILED")
    assert find_run(store.uri, failed.info.run_id).attempt == 1
    with pytest.raises(UnknownRunError):
        find_run(store.uri, "everyNone-second")


def test_the_commands_take_former_names(store, first):
    _, names = first
    second = list(named(NEW).values())[-2].name
    for name in names:
        done = CliRunner().invoke(main, ["compare", name, second, "--uri", store.uri, "--format", "markdown"])
        assert done.exit_code == 0, done.output
        assert "exchange.bucket_cap_mb" in done.output
    done = CliRunner().invoke(main, ["report", "known", "--only", "everyNone*", "--uri", store.uri, "--format", "csv"])
    assert len(done.stdout.splitlines()) == 2


def test_what_is_run_may_be_called_as_it_was(store, first):
    trial, names = first
    experiment = experiment_from_text(NEW, "known.yaml")
    asked = []

    def former(one):
        asked.append(one.name)
        return recorded_names(store.uri, one.name)

    assert check_chosen([experiment], [names[0]], former) == (names[0],)
    assert not asked
    assert check_chosen([experiment], ["everyNone*", names[0]], former) == (names[0], trial)
    with pytest.raises(NothingChosenError, match="did you mean"):
        check_chosen([experiment], [names[0] + "x"], former)


def test_a_name_that_another_trial_has_now_is_that_ones(tmp_path):
    store = Store(tmp_path)
    for trial, name, attempt in (("a" * 16, "one", 1), ("a" * 16, "one-more", 2), ("b" * 16, "one", 1)):
        store.run("alq", 1, [0.5], tags={"lqray.trial_id": trial, "lqray.attempt": str(attempt)}, name=name)
    assert find_run(store.uri, "one").trial_id == "b" * 16
    assert find_run(store.uri, "one-more").trial_id == "a" * 16
    run_id = find_run(store.uri, "one").run_id
    store.client.set_tag(run_id, "mlflow.runName", "called [so] in the UI")
    assert find_run(store.uri, "called [so] in the UI").run_id == run_id
    assert [one.run_id for one in report(store, only=["called [so] in the UI"]).records] == [run_id]


@pytest.mark.parametrize("command", [["report"], ["plot", "--kind", "curves"]])
def test_a_pattern_that_fits_nothing_is_told_with_what_is_near(store, first, command):
    _, names = first
    done = CliRunner().invoke(main, [*command, "known", "--uri", store.uri, "--only", "evryNone-first*"])
    assert done.exit_code == 2
    assert "no trial of known matches --only evryNone-first*; did you mean 'everyNone-first'" in done.stderr
    assert f"allowed: {names[0]}, everyNone-first" in done.stderr or f"allowed: {names[0]}, {names[1]}" in done.stderr


def test_an_exported_folder_keeps_names_and_needs_no_dot(store, first, tmp_path, monkeypatch):
    trial, _ = first
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["export", "known", "digits", "--raw", "csv", "--uri", store.uri])
    assert made.exit_code == 0, made.output
    for folder in ("digits", "./digits"):
        command = ["report", folder, "--only", "everyNone-first", "--format", "json", "--uri", "sqlite:///nothing.db"]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.stderr
        assert f'"trial_id": "{trial}"' in done.stdout
        assert "digits" not in done.stderr
    (tmp_path / "digits").rename(tmp_path / "known")
    done = CliRunner().invoke(main, ["report", "known", "--uri", store.uri, "--format", "csv"])
    assert "known is the experiment of the store; the folder of this name is ./known" in done.stderr
