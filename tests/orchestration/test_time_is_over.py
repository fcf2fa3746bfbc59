"""`resources.trial_time_limit` and `lqray run --max-hours`: what runs stops after a checkpoint, and goes on later."""

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.orchestration.plan.plan import Budget
from tests.testing.sweeps import recorded, run, write

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
    said = run(path, *options, expected=4)
    why = "resources.trial_time_limit: 1 s are over"
    assert f"{why}: 2 stopped after a checkpoint. The same command continues." in said
    assert stopped(path) == [("KILLED", why)] * 2
    before = steps(path)
    assert len(before) == 2
    run(path, *options, expected=4)
    assert len(runs(path)) == 2
    assert all(steps(path)[trial] > step for trial, step in before.items())


def test_a_launch_ends_after_its_hours(tmp_path):
    path = write(tmp_path / "a", ENDLESS)
    said = run(path, "--launcher", "inline", "--max-hours", "0.005", expected=4)
    why = "the hours of --max-hours 0.005 are over"
    assert f"{why}: 1 stopped after a checkpoint, 2 not begun. The same command continues." in said
    assert said.count(f"not begun ({why})") == 2
    assert stopped(path) == [("KILLED", why)]
    assert steps(path)
    assert "stopped" in CliRunner().invoke(main, ["status", str(path)]).output


def test_hours_that_are_over_begin_nothing(tmp_path):
    path = write(tmp_path / "a", ENDLESS)
    said = run(path, "--launcher", "inline", "--max-hours", "1e-6", expected=4)
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
