"""Pictures of the Mermaid diagrams of pages. Git hosts draw these themselves; the site shows them as they are drawn
here, so that no reader's browser has to run what draws them.

    pip install mmdr==0.4.0
    python docs/site/diagrams.py

draws those that have changed. It is not among the packages that tests want: a diagram changes seldom.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = "docs/images/diagrams"
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class NoPictureError(ValueError):
    """A diagram whose picture has not been drawn."""


def diagrams(text: str) -> list[str]:
    """The diagrams of a page."""
    return _DIAGRAM.findall(text)


def picture_of(diagram: str) -> str:
    """The file of a diagram's picture, which carries a digest of the text that it was drawn of."""
    return f"{PICTURES}/{hashlib.sha256(diagram.encode()).hexdigest()[:12]}.svg"


def with_pictures(name: str, text: str) -> str:
    """A page with pictures in the place of diagrams. Raises NoPictureError."""

    def shown(found: re.Match[str]) -> str:
        file = picture_of(found[1])
        if not (ROOT / file).is_file():
            raise NoPictureError(f"{name}: a diagram has no picture {file}; draw it: python docs/site/diagrams.py")
        return f"![diagram]({'../' * name.count('/')}{file})"

    return _DIAGRAM.sub(shown, text)


def pages_with_diagrams() -> dict[str, list[str]]:
    """The project's pages that have diagrams, with these."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name: diagrams((ROOT / name).read_text(encoding="utf-8")) for name in listed.stdout.split()}
    return {name: each for name, each in found.items() if each}


def main() -> None:
    """Draw what has no picture, and remove pictures of what is no more."""
    folder = ROOT / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {picture_of(one): one for each in pages_with_diagrams().values() for one in each}
    for file in folder.glob("*.svg"):
        if file.relative_to(ROOT).as_posix() not in wanted:
            file.unlink()
    for name, diagram in wanted.items():
        if not (ROOT / name).is_file():
            subprocess.run(
                [sys.executable, "-m", "mmdr", "-i", "-", "-o", str(ROOT / name)], input=diagram, text=True, check=True
            )
            sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
