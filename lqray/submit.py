"""`ray submit cluster.yaml lqray/submit.py -- experiments/quickstart.yaml`: `lqray run` on the head of a cluster.

Ray copies this one file to the head and runs it there, so it needs nothing but the lqray that cluster.yaml installed.
Files are looked for in the source tree of that lqray (a copy of the one that `ray up` sent) unless they are absolute.
`lqray submit` does more: it sends the working tree as it is now, and goes on where a connection broke.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Become `lqray run`, in the source tree, on the Ray that runs here. Ends the process with its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(f"Usage: ray submit cluster.yaml lqray/submit.py -- FILE... [options of lqray run]\n\n{__doc__}")
    found = find_spec("lqray")
    if found is None or found.origin is None:
        sys.exit(f"Error: {sys.executable} has no lqray; `ray up cluster.yaml` installs it")
    tree = Path(found.origin).parents[1]
    for file in (one for one in arguments if one.endswith((".yaml", ".yml")) and not one.startswith("-")):
        if not (tree / file).is_file():
            sys.exit(
                f"Error: no {file} in {tree} on this machine; `ray rsync-up cluster.yaml` or `ray up cluster.yaml` "
                "sends what is new"
            )
    os.environ.setdefault("RAY_ADDRESS", "auto")
    os.chdir(tree)
    os.execv(sys.executable, [sys.executable, "-m", "lqray", "run", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
