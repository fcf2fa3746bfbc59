"""`make test`: every test, in three streams side by side, and what came of all at the end.

Tests that start Ray wait more than they compute, and must not meet each other's: they run one after the other, shown as
they run. All others run beside them, in two streams, which are shown when they are over; until then .tests-beside-1.txt
and .tests-beside-2.txt grow. Arguments are pytest's, for all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_RAY = "ray or cluster"
_NAMES = ("cli", "communication", "experiment", "ops", "quantization", "reporting", "training")
_ROOMS = [f"tests/{room}" for room in _NAMES]
"""Their tests take as long as all others."""
_STREAMS = {
    "with Ray or several hosts": ["-m", _RAY],
    "of seven rooms": ["-m", f"not ({_RAY})", *_ROOMS],
    "of the other rooms and the whole": ["-m", f"not ({_RAY})", *(f"--ignore={room}" for room in _ROOMS)],
}
_NONE_CHOSEN = 5
"""pytest's exit status where it was asked for tests that a stream has none of."""


def _command(chosen: Sequence[str], arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, *arguments]


def _environment() -> dict[str, str]:
    """Of the streams: what Python compiles is kept, whatever a container says, for all processes that tests start."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def summary(outputs: dict[str, str]) -> str:
    """What pytest's outputs say of failures and counts, by the streams' names."""
    lines = []
    for name, output in outputs.items():
        failed = [line for line in output.splitlines() if re.match(r"(FAILED|ERROR) ", line)]
        ends = re.findall(r"^=* ?(\d+ \w+.* in [\d.]+s.*?) ?=*$", output, re.MULTILINE)
        lines += [f"Tests {name}: {ends[-1] if ends else 'ended without a word'}", *(f"  {line}" for line in failed)]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 where a test failed in any."""
    shown, *beside = _STREAMS
    environment = _environment()
    outputs = {}
    files = {name: Path(f".tests-beside-{number}.txt") for number, name in enumerate(beside, 1)}
    others = []
    try:
        for name, file in files.items():
            with file.open("w") as stream:
                command = _command(_STREAMS[name], arguments)
                others.append(subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment))
        command = _command(_STREAMS[shown], arguments)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, env=environment
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        outputs[shown] = "".join(lines)
        codes = {process.wait(), *(other.wait() for other in others)}
    finally:
        for other in others:
            if other.poll() is None:  # interrupted
                other.terminate()
                other.wait()
    for name, file in files.items():
        outputs[name] = file.read_text(errors="replace")
        print(outputs[name])
    print(summary(outputs), flush=True)
    return int(bool(codes - {0, _NONE_CHOSEN}) or codes == {_NONE_CHOSEN})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
