"""What `make test` runs, and what it says at its end."""

import sys
from pathlib import Path

import pytest

from tests import streams

ROOT = Path(__file__).parents[1]

FIRST = """
.F.
FAILED tests/a.py::test_one - AssertionError: assert 1 == 2
==== 1 failed, 2 passed, 3 deselected in 61.20s (0:01:01) ====
"""
SECOND = """
ERROR tests/b.py::test_two - OSError
4 passed, 1 error in 2.00s
"""


def test_failures_and_counts_of_both_streams_are_together_at_the_end():
    assert streams.summary({"with Ray": FIRST, "all others": SECOND, "broken": "Segmentation fault"}).splitlines() == [
        "Tests with Ray: 1 failed, 2 passed, 3 deselected in 61.20s (0:01:01)",
        "  FAILED tests/a.py::test_one - AssertionError: assert 1 == 2",
        "Tests all others: 4 passed, 1 error in 2.00s",
        "  ERROR tests/b.py::test_two - OSError",
        "Tests broken: ended without a word",
    ]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((0, 0, 0), 0), ((0, 5, 0), 0), ((5, 5, 5), 1), ((1, 0, 0), 1), ((0, 1, 0), 1), ((0, 0, -11), 1)],
)
def test_a_stream_that_fails_fails_the_whole(monkeypatch, tmp_path, capfd, codes, expected):
    monkeypatch.chdir(tmp_path)
    exits = dict(zip(map(tuple, streams._STREAMS.values()), codes, strict=True))

    def command(chosen, _):
        code = exits[tuple(chosen)]
        end = f"os._exit({code})" if code >= 0 else f"os.kill(os.getpid(), {-code})"
        return [sys.executable, "-c", f"import os; {end}"]

    monkeypatch.setattr(streams, "_command", command)
    assert streams.main([]) == expected
    assert capfd.readouterr().out.count(": ended without a word") == 3


def test_what_python_compiles_is_kept_and_all_else_is_the_callers(monkeypatch, tmp_path, capfd):
    """The number of torch's threads, too: what is computed by several is tested so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("LQRAY_FUZZ", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = (
        "import os, sys; print('!', sys.dont_write_bytecode, *map(os.environ.get, ('LQRAY_FUZZ', 'OMP_NUM_THREADS')))"
    )
    monkeypatch.setattr(streams, "_command", lambda chosen, arguments: [sys.executable, "-c", code])
    streams.main([])
    assert capfd.readouterr().out.count("! False 7 None") == 3


def test_every_test_is_in_one_stream():
    """Folders that a stream names are there, and are those that the others leave out."""
    _, lower, others = streams._STREAMS.values()
    rooms = [one for one in lower if one.startswith("tests/")]
    assert all((ROOT / room).is_dir() for room in rooms)
    assert [one.removeprefix("--ignore=") for one in others if one.startswith("--ignore")] == rooms
    assert lower[:2] == others[:2]
