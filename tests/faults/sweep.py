"""A server that has imported everything and forks a process for each sweep: `python -m tests.faults.sweep`.

One request a line on its standard input, as JSON: {"folder", "mode", "number", "arguments"}; one answer a line: the
exit status, negative for a signal, or null where the sweep did not end and was killed. A sweep's output goes to
FOLDER.output.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

from tests.faults.acts import Acts, Fault, install

SECONDS = 90.0
"""After so long a sweep is said not to end: it takes about one."""

_PRELOADED = ("mlflow", "lqray.orchestration.launch", "lqray.cli", "tests.faults.acts", "tests.faults.preload")


def serve() -> None:
    """Answer requests until the input ends."""
    multiprocessing.set_forkserver_preload(list(_PRELOADED))
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server.ensure_running()
    server.ensure_running = lambda: None  # forked processes use this one's
    import tests.faults.preload  # noqa: F401

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        status = _forked(Path(request["folder"]), Fault(request["mode"], request["number"]), request["arguments"])
        sys.stdout.write(json.dumps(status) + "\n")
        sys.stdout.flush()


def _forked(folder: Path, fault: Fault, arguments: list[str]) -> int | None:
    child = os.fork()
    if child == 0:
        _sweep(folder, fault, arguments)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGABRT)  # its stack is in the output
    os.waitpid(child, 0)
    return None


def _sweep(folder: Path, fault: Fault, arguments: list[str]) -> None:
    import faulthandler

    from tests.faults.preload import hurry

    with Path(f"{folder}.output").open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.enable()
    os.chdir(folder)
    code: object = 1
    try:
        from lqray.cli import main

        hurry(fault)
        install(Acts(folder, fault))
        sys.argv = ["lqray", *arguments]
        main(arguments, prog_name="lqray")
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # What a process does at its end, beside what the interpreter does with a thousand modules; multiprocessing's own is
    # the last of it.
    import atexit

    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else int(bool(code)))


if __name__ == "__main__":
    serve()
