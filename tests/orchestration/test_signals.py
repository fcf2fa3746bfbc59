"""Ctrl-C, SIGTERM and SIGHUP at every moment of a launch: told by exit codes, and never a traceback."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import pytest

from lqray.orchestration import signals
from lqray.orchestration.signals import Interrupted

PRELUDE = """
import os, signal, sys, time
from lqray.orchestration import signals

def say(text):
    os.write(1, (text + chr(10)).encode())
"""


@contextmanager
def process(code: str, ignored: tuple[signal.Signals, ...] = ()):
    """A Python process that has said its first line, in a process group of its own."""

    def prepare():
        for number in signals.SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        if signal.SIGINT not in ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    started = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
    )
    try:
        assert started.stdout.readline() == "ready\n"
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def end_of(started, *numbers: signal.Signals) -> str:
    for number in numbers:
        os.killpg(started.pid, number)
    said, _ = started.communicate(timeout=60)
    assert "Traceback" not in said
    return said


RAISING = """
try:
    with signals.heeded("leave"), signals.raising():
        say("ready")
        time.sleep(60)
except KeyboardInterrupt:
    say("ended")
    sys.exit(signals.exit_code())
"""


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_every_signal_ends_what_runs_and_has_its_exit_code(number):
    with process(RAISING) as started:
        assert end_of(started, number) == "ended\n"
        assert started.returncode == 128 + number


def test_sigterm_is_heard_in_a_background_job_whose_sigint_is_ignored():
    with process(RAISING, ignored=(signal.SIGINT,)) as started:
        os.killpg(started.pid, signal.SIGINT)
        time.sleep(0.3)
        assert started.poll() is None
        assert end_of(started, signal.SIGTERM) == "ended\n"
        assert started.returncode == 143


def test_a_hang_up_under_nohup_stays_ignored():
    with process(RAISING, ignored=(signal.SIGHUP,)) as started:
        os.killpg(started.pid, signal.SIGHUP)
        time.sleep(0.3)
        assert started.poll() is None
        end_of(started, signal.SIGTERM)
        assert started.returncode == 143


def test_before_anything_has_begun_the_process_leaves_at_once_with_one_line():
    code = """
    class Slow:
        def __del__(self):
            while True:  # an exception raised here would be swallowed
                time.sleep(.1)

    with signals.heeded("leave"):
        say("ready")
        slow = Slow()
        del slow
    """
    with process(code) as started:
        assert end_of(started, signal.SIGTERM).strip() == "Interrupted."
        assert started.returncode == 143


def test_what_is_being_recorded_is_ended_before_a_signal_is_acted_on():
    code = """
    try:
        with signals.heeded("leave"), signals.raising():
            with signals.noting():
                say("ready")
                while not signals.heard():
                    time.sleep(.05)
                say("recorded")
            say("never")
    except KeyboardInterrupt:
        say("ended")
    """
    with process(code) as started:
        assert end_of(started, signal.SIGINT).split() == ["recorded", "ended"]


ENDING = """
signals._GIVE_UP_SECONDS = PATIENCE
with signals.heeded("note"):
    say("ready")
    while signals.heard() < COUNT:
        time.sleep(.02)
    time.sleep(SLEEP)
    say("recorded")
sys.exit(signals.exit_code())
"""


def test_a_second_signal_is_answered_and_hammering_does_not_cost_the_records():
    code = ENDING.replace("PATIENCE", "60").replace("COUNT", "4").replace("SLEEP", "0")
    with process(code) as started:
        for _ in range(3):
            os.killpg(started.pid, signal.SIGINT)
            time.sleep(0.2)
        said = end_of(started, signal.SIGINT)
        assert "It is being ended" in said
        assert said.strip().endswith("recorded")
        assert started.returncode == 130


def test_a_third_signal_after_a_while_gives_up():
    code = ENDING.replace("PATIENCE", "0.3").replace("COUNT", "1").replace("SLEEP", "60")
    with process(code) as started:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.killpg(started.pid, number)
            time.sleep(0.5)
        assert "Given up" in end_of(started, signal.SIGINT)
        assert started.returncode == 143


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_processes_that_are_being_started_hear_no_signal(tmp_path, number):
    """The child takes its time before its first line of our code runs, as one that imports torch does."""
    (tmp_path / "slow_child.py").write_text(
        "import time, os\n"
        "def serve(pipe):\n"
        "    from lqray.orchestration.signals import leave_to_launcher\n"
        "    leave_to_launcher()\n"
        "    pipe.send('alive')\n"
        "    pipe.recv()\n"
        "    pipe.send('still alive')\n"
        "time.sleep(1.0)\n"
    )
    code = f"""
    import multiprocessing
    sys.path.insert(0, {str(tmp_path)!r})
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with signals.heeded("note"):
        import slow_child
        child = context.Process(target=slow_child.serve, args=(there,), daemon=True)
        with signals.starting_processes():
            child.start()
        say("ready")
        say(here.recv())
        here.send(1)
        say(here.recv())
        child.join()
    """
    with process(code) as started:
        for _ in range(3):
            os.killpg(started.pid, number)
            time.sleep(0.25)
        said = end_of(started, number)
        assert "alive\n" in said
        assert said.endswith("still alive\n")


def test_masks_and_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with signals.raising():
        assert signal.getsignal(signal.SIGTERM) not in before
        with signals.starting_processes():
            assert set(signals.SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_handlers_that_somebody_else_sets_meanwhile_are_replaced():
    """ray.init sets its own for SIGTERM."""
    with pytest.raises(Interrupted), signals.raising():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with signals.raising():
            signal.raise_signal(signal.SIGTERM)
    assert signals.exit_code() == 143


def test_a_signal_that_was_swallowed_is_raised_again():
    class Swallowing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted), signals.raising():
        with _quiet():
            Swallowing()
        signals.raise_if_heard()


def test_a_signal_that_an_earlier_launch_heard_is_over():
    with pytest.raises(Interrupted), signals.heeded():
        signal.raise_signal(signal.SIGTERM)
    try:
        signals.raise_if_heard()
    except Interrupted:  # which would end all tests
        pytest.fail("raised once more")


@contextmanager
def _quiet():
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before
