"""Links of the project's Markdown: every file and every heading that one names is there, as a Git host shows them."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRACKED = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")) - {""}
DOCUMENTS = sorted(name for name in TRACKED if name.endswith(".md"))
_CODE = re.compile(r"^ *```.*?^ *```|`+[^`]*`+", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]*)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)


def links(text: str) -> list[str]:
    """Where the links of a page lead that stay in the project."""
    found = [first or second for first, second in _LINK.findall(_CODE.sub("code", text))]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@cache
def anchors(name: str) -> frozenset[str]:
    """The names that a page's headings have in addresses."""
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return frozenset(
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading.strip().lower())).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    )


def broken(name: str, link: str) -> str | None:
    """What is wrong with a link of a page, or None."""
    if not link:
        return f"{name}: a link leads nowhere"
    path, _, anchor = link.partition("#")
    target = (ROOT / name).parent.joinpath(path).resolve() if path else ROOT / name
    if not target.is_relative_to(ROOT):
        return f"{name}: {link} leads out of the project"
    found = target.relative_to(ROOT).as_posix()
    if found not in TRACKED and not any(other.startswith(f"{found}/") for other in TRACKED):
        return f"{name}: {link} names no file that git has"
    if anchor and anchor not in anchors(found):
        return f"{name}: {link} names no heading of {found}"
    return None


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [problem for link in links(text) if (problem := broken(name, link))] == []


def test_links_were_read():
    assert sum(len(links((ROOT / name).read_text(encoding="utf-8"))) for name in DOCUMENTS) > 100


@pytest.mark.parametrize(
    "link", ["", "no-such.md", "../../etc/passwd", "README.md#no-such-heading", "#no-such", "build"]
)
def test_a_link_that_leads_nowhere_is_noticed(link):
    assert broken("README.md", link)
    assert broken("README.md", "docs/guide/reports.md#steps-on-other-links-lqray-report---link") is None
    assert links(f"a `[b](c)` [d]({link}) [e](https://example.org)") == [link]
