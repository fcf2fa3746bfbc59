"""`make test`: every test, in two streams side by side, and what came of both at the end.

Tests that start Ray wait more than they compute, and must not meet each other's: they run one after the other, shown as
they run. All others run beside them, and are shown when they are over; until then .tests-without-ray.txt grows.
Arguments are pytest's, for both.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_STREAMS = {"with Ray or several hosts": "ray or cluster", "all others": "not (ray or cluster)"}
_BESIDE = Path(".tests-without-ray.txt")
_NONE_CHOSEN = 5
"""pytest's exit status where it was asked for tests that a stream has none of."""


def _command(marks: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-m", marks, "-p", "no:cacheprovider", *arguments]


def summary(outputs: dict[str, str]) -> str:
    """What pytest's outputs say of failures and counts, by the streams' names."""
    lines = []
    for name, output in outputs.items():
        failed = [line for line in output.splitlines() if re.match(r"(FAILED|ERROR) ", line)]
        ends = re.findall(r"^=* ?(\d+ \w+.* in [\d.]+s.*?) ?=*$", output, re.MULTILINE)
        lines += [f"Tests {name}: {ends[-1] if ends else 'ended without a word'}", *(f"  {line}" for line in failed)]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 where a test failed in either."""
    shown, beside = _STREAMS
    outputs = {}
    with _BESIDE.open("w") as stream:
        others = subprocess.Popen(_command(_STREAMS[beside], arguments), stdout=stream, stderr=subprocess.STDOUT)
    try:
        command = _command(_STREAMS[shown], arguments)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        outputs[shown] = "".join(lines)
        codes = {process.wait(), others.wait()}
    finally:
        if others.poll() is None:  # interrupted
            others.terminate()
            others.wait()
    outputs[beside] = _BESIDE.read_text(errors="replace")
    print(outputs[beside])
    print(summary(outputs), flush=True)
    return int(bool(codes - {0, _NONE_CHOSEN}) or codes == {_NONE_CHOSEN})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
