"""`resources.trial_time_limit` and `lqray run --max-hours`: what runs stops after a checkpoint, and goes on later."""

import time

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.orchestration.launch import _within
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.plan.plan import Budget
from lqray.orchestration.queue.queue import TrialQueue
from lqray.orchestration.queue.sources import Given
from tests.orchestration.queue.test_queue import FakeRecorder, Quiet, trials
from tests.testing.sweeps import recorded, run_here, write

pytestmark = pytest.mark.processes

ENDLESS = 1_000_000


def runs(path) -> list:
    return list(recorded(f"sqlite:///{path.parent}/lqray.db").values())


def stopped(path) -> list[tuple[str, str]]:
    return sorted((one.info.status, one.data.tags.get("lqray.stopped", "")) for one in runs(path))


def steps(path) -> dict[str, int]:
    found = path.parent.glob("storage/sweep/*/step-*.pt")
    return {file.parent.name: max(int(file.stem[5:]), 0) for file in sorted(found)}


def test_trials_stop_after_their_time_and_the_same_command_continues_them(tmp_path):
    path = write(tmp_path / "a", ENDLESS)
    options = ("--launcher", "inline", "--max-trials", "2", "--set", "resources.trial_time_limit=1")
    said = run_here(path, *options, expected=4)
    why = "resources.trial_time_limit: 1 s are over"
    assert f"{why}: 2 stopped after a checkpoint. The same command continues." in said
    assert stopped(path) == [("KILLED", why)] * 2
    before = steps(path)
    assert len(before) == 2
    run_here(path, *options, expected=4)
    assert len(runs(path)) == 2
    assert all(steps(path)[trial] > step for trial, step in before.items())


def test_once_the_hours_are_over_what_runs_is_to_stop_and_nothing_begins():
    queue = TrialQueue(Given(trials(2)), FakeRecorder(), Quiet(), lambda result: None)
    first = queue.take()
    budget = Budget(0.3 / 3600, time.monotonic())
    with _within(budget, queue):
        assert queue.stop_reason("0000") is None
        while budget.left or not queue.stop_reason("0000"):
            time.sleep(0.01)
        assert queue.stop_reason("0000") == budget.why
        queue.ended(TrialResult(first.named, "KILLED", stopped=budget.why))
        assert queue.take() is None
    assert [why for _, why in queue.left_out.values()] == [budget.why]


def test_hours_that_are_over_begin_nothing(tmp_path):
    path = write(tmp_path / "a", ENDLESS)
    said = run_here(path, "--launcher", "inline", "--max-hours", "1e-6", expected=4)
    assert "are over: 3 not begun" in said
    assert not runs(path)


def test_a_budget_counts_from_where_the_command_began(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    assert Budget(0.5, 40.0).left == 1740.0
    assert Budget(0.01, 40.0).left == 0


@pytest.mark.parametrize("hours", ["0", "-1", "9000", "nan"])
def test_other_hours_are_refused(hours):
    refused = CliRunner().invoke(main, ["run", "x.yaml", "--max-hours", hours])
    assert refused.exit_code == 2
    assert "Invalid value for '--max-hours'" in refused.output
