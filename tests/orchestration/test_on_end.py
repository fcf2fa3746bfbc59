"""`lqray run --on-end CMD`: whatever the end, the command hears of it, and changes nothing."""

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from lqray.cli import main, on_end, sweeps
from lqray.cli.on_end import Ending, told_of_end
from lqray.orchestration.launchers.placement import PlacementError
from tests.testing.sweeps import output, start, wait_for, write

TELL = "env | grep ^LQRAY_[A-Z_]*= > ended"


def heard(folder: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in (folder / "ended").read_text().splitlines())
    return {key.removeprefix("LQRAY_"): value for key, _, value in lines if key != "LQRAY_TEST_MARK"}


@pytest.mark.processes
def test_a_launch_that_is_ended_by_a_signal_still_tells(tmp_path):
    path = write(tmp_path / "a", 1_000_000)
    process = start(path, "--launcher", "inline", "--on-end", TELL)
    wait_for(path, lambda: list(path.parent.glob("storage/sweep/*/step-*")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143, output(path)
    report = "lqray report sweep"
    assert heard(path.parent).pop("REPORT").endswith(report)
    counts = {"FINISHED": "0", "FAILED": "0", "LEFT": "3", "EXIT_CODE": "143"}
    assert heard(path.parent).items() >= ({"EXPERIMENT": "sweep", "STATUS": "interrupted"} | counts).items()


@pytest.fixture
def launched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 20)

    def launch(*options: str):
        return CliRunner().invoke(main, ["run", str(path), "--launcher", "inline", "--only", "seed1", *options])

    return launch


def test_an_end_in_order_and_a_command_that_fails(launched, tmp_path):
    done = launched("--on-end", f"{TELL}; exit 3")
    assert done.exit_code == 0, done.output
    assert heard(tmp_path).items() >= {"STATUS": "finished", "FINISHED": "1", "LEFT": "0", "EXIT_CODE": "0"}.items()
    assert done.output.splitlines()[-1].startswith("--on-end: the command's exit code is 3: env | grep")
    assert launched("--on-end", TELL, "--dry-run").exit_code == 0
    assert heard(tmp_path)["FINISHED"] == "1"  # a dry run has no end
    again = launched("--on-end", TELL)
    assert again.exit_code == 0
    assert heard(tmp_path).items() >= {"STATUS": "finished", "FINISHED": "0"}.items()


def test_a_trial_that_fails(launched, tmp_path):
    done = launched("--on-end", TELL, "--set", "optimizer.lr=1e30", "--set", "telemetry.every=1")
    assert done.exit_code == 1, done.output
    assert heard(tmp_path).items() >= {"STATUS": "failed", "FAILED": "1", "EXIT_CODE": "1"}.items()


def test_what_ends_a_launch_with_an_error_is_told(launched, tmp_path, monkeypatch):
    def lost(*_):
        raise PlacementError("no place")

    monkeypatch.setattr(sweeps, "carry_out", lost)
    done = launched("--on-end", TELL)
    assert done.exit_code == 2
    assert heard(tmp_path).items() >= {"STATUS": "lost", "LEFT": "1", "EXIT_CODE": "2"}.items()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sleep 600 & sleep 600", "the command was ended after 0.2 s"),
        ("kill -9 $$", "the command was killed by SIGKILL"),
        ("true", ""),
    ],
)
def test_a_command_that_goes_wrong_is_a_line(command, said, monkeypatch, capfd):
    monkeypatch.setattr(on_end, "SECONDS", 0.2 if "sleep" in command else 60)
    with told_of_end(command, Ending("x")):
        pass
    assert capfd.readouterr().err.strip() == (f"--on-end: {said}: {command}" if said else "")
