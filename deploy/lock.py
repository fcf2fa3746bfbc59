"""Writes the locks from what is installed beside this Python: requirements.lock, what lqray runs with, on laptops,
clusters and in images; requirements-test.lock, what its tests and linters want besides.

They name versions and no hashes. torch comes in builds, for CPUs and for several CUDAs, of equal versions and other
bytes, from places that each machine chooses; its CUDA libraries are left out, since the build that is chosen brings
them. pip takes hashes of all packages or of none.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OF_RUNS = ("optuna", "postgresql", "s3", "server", "text")
"""Extras of lqray that its machines have: what an experiment may ask for."""
OF_BUILDS = ("setuptools",)
_LEFT_OUT = re.compile(r"(triton|nvidia-.*|cuda-.*|pip|lqray)$")


def closure(wanted: Iterable[str]) -> set[str]:
    """Canonical names of the installed packages that requirements need, themselves among them."""
    found: set[tuple[str, str]] = set()
    left = [Requirement(text) for text in wanted]
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        for extra in ("", *sorted(one.extras)):
            if (name, extra) in found or _LEFT_OUT.match(name):
                continue
            found.add((name, extra))
            for text in metadata.requires(name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    left.append(needed)
    return {name for name, _ in found}


def locks() -> dict[str, str]:
    """The content of each lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    runs = closure([*project["dependencies"], *OF_BUILDS, *(text for extra in OF_RUNS for text in extras[extra])])
    tests = closure(extras["dev"]) - runs
    return {
        "requirements.lock": _lines(runs),
        "requirements-test.lock": "-c requirements.lock\n" + _lines(tests),
    }


def _lines(names: Iterable[str]) -> str:
    lines = []
    for name in names:
        found = metadata.distribution(name)
        lines.append(f"{found.metadata['Name']}=={found.version.partition('+')[0]}\n")
    return "".join(sorted(lines, key=str.lower))


if __name__ == "__main__":
    for file, text in locks().items():
        (ROOT / file).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{file}: {text.count('==')} packages\n")
