"""The pages of the site: the project's Markdown as it stands, and what is generated, in one folder for Sphinx.

Paths are those of the project, so that links mean the same here, on a Git host and in an editor.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import commands_page
import options_page
import python_page
from diagrams import with_pictures

ROOT = Path(__file__).resolve().parents[2]
HOME = "index.md"
"""What README.md is called on the site."""
NAVIGATION = {
    "Start": ["docs/start/laptop", "docs/start/cluster", "docs/start/slurm", "docs/start/own-script"],
    "Guide": [
        *("docs/guide/methods", "docs/guide/exchange", "docs/guide/local-steps", "docs/guide/sweeps"),
        *("docs/guide/training", "docs/guide/data", "docs/guide/reports", "docs/guide/tracking"),
        *("docs/guide/storage", "docs/guide/clusters", "docs/guide/own-parts", "docs/guide/python"),
        *("docs/guide/kernels", "experiments/README"),
    ],
    "Reference": [
        *("docs/reference/options", "docs/reference/commands", "docs/reference/python"),
        *("docs/wire-format", "docs/reference/environment"),
    ],
    "Background": ["docs/design", "docs/verification", "SECURITY", "CONTRIBUTING"],
    "Help": ["docs/troubleshooting"],
}
_CODE = re.compile(r"^ *```.*?^ *```|`+[^`]*`+", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?\[(?:[^\[\]`]|`[^`]*`)*\])\(([^()\s]+)\)")


class SiteError(ValueError):
    """A page that cannot become one of the site."""


def stage(folder: Path) -> list[str]:
    """Write everything that Sphinx reads to an empty folder; give the names of the pages back. Raises SiteError, and
    UndocumentedError for an option, a command or a public name that nothing is said of."""
    generated = {
        "docs/reference/commands.md": commands_page.page(),
        "docs/reference/python.md": python_page.page(),
        **{f"docs/reference/{name}": text for name, text in options_page.pages().items()},
    }
    inside = sorted(name.removeprefix("docs/reference/options/") for name in generated if "/options/" in name)
    generated["docs/reference/options.md"] += _toctree("", [f"options/{name[:-3]}" for name in inside])
    pages: dict[str, str] = {}
    left = ["README.md", *(f"{name}.md" for names in NAVIGATION.values() for name in names)]
    while left:
        name = left.pop()
        if name in pages or name in generated:
            continue
        text, linked, files = _page(name)
        pages[name] = text
        left += linked
        for file in files:
            _copy(file, folder)
    pages["README.md"] += "".join(_toctree(caption, names) for caption, names in NAVIGATION.items())
    listed = {f"{name}.md" for names in NAVIGATION.values() for name in names}
    if forgotten := sorted(name for name in _tracked() if re.match(r"docs/.*\.md$", name) and name not in listed):
        raise SiteError(f"docs/site/pages.py: NAVIGATION names {', '.join(forgotten)} nowhere")
    for name, text in {**pages, **generated}.items():
        file = folder / (HOME if name == "README.md" else name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_orphan(name, listed) + text + "\n", encoding="utf-8")
    return sorted({**pages, **generated})


def _page(name: str) -> tuple[str, list[str], list[str]]:
    """(Markdown for the site, pages that it links to, other files that it shows or links to) of a page."""
    text = with_pictures(name, (ROOT / name).read_text(encoding="utf-8"))
    pages: list[str] = []
    files: list[str] = []

    def link(found: re.Match[str]) -> str:
        path, _, anchor = found[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if (ROOT / target).is_dir():
            inside = next(
                (f"{target}/{file}" for file in ("RESULTS.md", "README.md") if f"{target}/{file}" in _tracked()), None
            )
            if inside is None:
                return found[1][1:-1]
            target = inside
        generated = target.startswith("docs/reference/") and target not in _tracked()
        if target not in _tracked() and not generated:
            raise SiteError(f"{name}: {found[2]} names no file of the project")
        (pages if target.endswith(".md") else files).append(target)
        shown = HOME if target == "README.md" else target
        relative = posixpath.relpath(shown, posixpath.dirname(name) or ".")
        return f"{found[1]}({relative}{'#' + anchor if anchor else ''})"

    kept = list(_CODE.finditer(text))
    return _outside(text, kept, link), pages, files


def _outside(text: str, kept: list[re.Match[str]], link: object) -> str:
    """A page with `link` applied to its links; blocks of code stay, and code inside a link's text is text."""
    fences = [found for found in kept if found[0].lstrip().startswith("```")]
    parts, end = [], 0
    for found in fences:
        parts += [_LINK.sub(link, text[end : found.start()]), found[0]]  # type: ignore[call-overload]
        end = found.end()
    return "".join([*parts, _LINK.sub(link, text[end:])])  # type: ignore[call-overload]


def _toctree(caption: str, names: list[str]) -> str:
    title = [f":caption: {caption}"] if caption else []
    return "\n\n" + "\n".join(["```{toctree}", ":hidden:", *title, "", *names, "```"]) + "\n"


def _orphan(name: str, listed: set[str]) -> str:
    """Sphinx wants to be told of pages that only links lead to."""
    known = name == "README.md" or name in listed or name.startswith("docs/reference/")
    return "" if known else "---\norphan: true\n---\n\n"


def _copy(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, folder / name)


@cache
def _tracked() -> frozenset[str]:
    return frozenset(_listed())


def _listed() -> Iterator[str]:
    """Files of the project: of a checkout those that git has; elsewhere all."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        yield from filter(None, done.stdout.split("\0"))
    else:
        yield from (file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*") if file.is_file())
