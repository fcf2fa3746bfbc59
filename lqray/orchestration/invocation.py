"""How this program was called, in words that a shell takes: in commands that are printed, and in what is recorded."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

from lqray.orchestration.submitted import runs_in_a_job

_NAME = "lqray"


def program() -> str:
    """What a command begins with that calls this lqray: its name where the PATH leads to it; else as it was called, or
    as its Python finds it. In a job its name, since it is called elsewhere."""
    called = Path(sys.argv[0])
    if runs_in_a_job() or _is_on_the_path(called):
        return _NAME
    if called.name == _NAME and not called.is_dir():
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m {_NAME}"


def command() -> str:
    """The one that this process is. Of a program of another name, which uses lqray: as it was called."""
    called = Path(sys.argv[0])
    if called.name == _NAME or (called.parent.name, called.name) == (_NAME, "__main__.py"):
        return " ".join([program(), *map(shlex.quote, sys.argv[1:])])
    if sys.argv[0] == "-c" or not sys.orig_argv:
        return shlex.join(sys.argv)
    return shlex.join(sys.orig_argv)


def _is_on_the_path(called: Path) -> bool:
    """Whether a shell that looks for the name finds this lqray: the program that was called, or this Python's."""
    found = shutil.which(_NAME)
    if not found:
        return False
    if called.is_file() and called.samefile(found):
        return True
    return _runs_in_this_python(Path(found))


def _runs_in_this_python(script: Path) -> bool:
    """By its first lines, as pip writes them: `#!PYTHON`, or a line of `sh` where that is too long."""
    here = Path(sys.executable)
    try:
        names = [str(one) for one in here.parent.glob("python*") if one.is_file() and one.samefile(here)]
        with script.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(4096) + file.readline(4096)
    except OSError:
        return False
    return any(re.search(rf"{re.escape(name)}(?![\w./-])", first) for name in names)
