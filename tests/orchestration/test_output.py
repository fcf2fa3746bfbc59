"""Output that nobody reads, or that has no room, ends the printing and nothing else."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

DOING = """
import sys, threading
from lqray.orchestration.output import outlive_readers
outlive_readers()
sys.stdout.isatty(), sys.stderr.isatty()
from rich.console import Console
from rich.live import Live
sys.stdin.readline()
with Live("...", console=Console(force_terminal=True), refresh_per_second=100):
    for number in range(300):
        print(number * "x")
        print("also", file=sys.stderr, flush=True)
open("done", "w").close()
sys.exit(3)
"""


def python(folder, code: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, **options)


@pytest.mark.parametrize("kind", ["closed pipes", "full", "closed at start", "hung up"])
def test_a_command_that_does_something_goes_on_and_its_exit_code_tells_how_it_went(tmp_path, kind):
    """Also rich's thread and the interpreter's last flush say nothing."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    terminal = None
    if kind == "full":
        options["stdout"] = Path("/dev/full").open("w")  # noqa: SIM115
    elif kind == "closed at start":
        options = {"preexec_fn": lambda: (os.close(1), os.close(2))}
    elif kind == "hung up":
        terminal, theirs = pty.openpty()
        options = {"stdout": theirs, "stderr": theirs}
    started = python(tmp_path, DOING, **options)
    if kind == "closed pipes":
        started.stdout.close()
        started.stderr.close()
    elif terminal is not None:
        os.close(options["stdout"])
        os.close(terminal)
    started.stdin.write(b"go\n")
    started.stdin.close()
    if kind == "full":
        assert b"Traceback" not in started.stderr.read()
        options["stdout"].close()
    assert started.wait(60) == 3
    assert (tmp_path / "done").exists()


READING = """
import sys
from lqray.orchestration.output import outlive_readers
outlive_readers(needed=True)
sys.stdin.readline()
try:
    for number in range(100000):
        print(number, flush=True)
except Exception as error:
    print("caught", error, file=sys.stderr)
"""


def test_a_command_that_is_there_to_be_read_ends_quietly_when_nobody_reads_on(tmp_path):
    started = python(tmp_path, READING, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.stdout.close()
    said = _rest(started)
    assert started.returncode == 1
    assert said == b""


def test_a_command_that_is_there_to_be_read_says_that_the_disk_is_full(tmp_path):
    with Path("/dev/full").open("w") as full:
        started = python(tmp_path, READING, stdout=full, stderr=subprocess.PIPE)
        said = _rest(started)
    assert started.returncode == 1
    assert said == b"Error: standard output cannot be written: [Errno 28] No space left on device\n"


def _rest(started: subprocess.Popen) -> bytes:
    started.stdin.write(b"go\n")
    started.stdin.close()
    said = started.stderr.read()
    started.wait(60)
    return said


def test_a_pipe_that_does_not_block_is_waited_for(tmp_path):
    code = """
import os, sys
from lqray.orchestration.output import outlive_readers
os.set_blocking(1, False)
outlive_readers()
print("x" * 1000000, flush=True)
sys.exit(3)
"""
    started = python(tmp_path, code, stdout=subprocess.PIPE)
    assert len(started.stdout.read()) == 1000001
    assert started.wait(60) == 3


def test_every_command_of_lqray_that_only_prints_is_known():
    from lqray.cli import _TO_BE_READ, main

    assert set(_TO_BE_READ) < set(main.commands)
    assert not {"run", "train", "submit", "ui", "server", "export", "plot", "stop"} & set(_TO_BE_READ)


CLI = """
import sys
import click
from lqray.cli import main
@click.command()
def work():
    print("0.5 \u00b1 0.1, caf\u00e9")
    open("done", "w").close()
main.add_command(work)
sys.argv = ["lqray", "work"]
main()
"""


@pytest.mark.parametrize("where", ["> /dev/full", ">&-"])
def test_a_command_whose_output_has_no_room_does_its_work_says_so_in_a_line_and_fails(tmp_path, where):
    (tmp_path / "cli.py").write_text(CLI)
    shell = f"{sys.executable} cli.py {where}"
    ran = subprocess.run(shell, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "standard output cannot be written" in ran.stderr
    assert (tmp_path / "done").exists()


def test_a_command_that_nobody_reads_has_not_failed(tmp_path):
    (tmp_path / "cli.py").write_text(CLI)
    shell = f"{sys.executable} cli.py | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", shell], cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr


def test_what_an_encoding_does_not_have_is_said_plainly(tmp_path):
    (tmp_path / "cli.py").write_text(CLI)
    ran = subprocess.run(
        [sys.executable, "cli.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, "0.5 +- 0.1, caf?\n"), ran.stderr
