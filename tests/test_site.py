"""The documentation's site: it is built without a warning, its links lead somewhere, nothing comes from elsewhere, and
its reference has everything that there is."""

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from pydantic import BaseModel

import lqray
from lqray.cli import main
from lqray.experiment import names
from lqray.experiment.options import data, model, optimizer, quantizer, task
from lqray.experiment.schema import Trial

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("build", "commands_page", "diagrams", "markdown", "options_page", "pages", "python_page")


@pytest.fixture(scope="module")
def site():
    """The modules that build it, by name."""
    kept = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(ROOT / "docs/site"))
    yield {name: importlib.import_module(name) for name in MODULES}
    while str(ROOT / "docs/site") in sys.path:
        sys.path.remove(str(ROOT / "docs/site"))
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.fixture(scope="module")
def options_pages(site):
    """Markdown of the pages of options."""
    return site["options_page"].pages()


@pytest.fixture(scope="module")
def built(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "html"
    assert site["build"].build(folder) == 0
    return folder


class Page(HTMLParser):
    """What a page links to, loads, and may be linked to by."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("next", "prev", "index", "search", "genindex"):
            self.loads.append(found["href"])
        elif found.get("src"):
            self.loads.append(found["src"])


def test_every_page_of_the_navigation_is_built(site, built):
    wanted = [name for listed in site["pages"].NAVIGATION.values() for name in listed]
    assert [name for name in wanted if not (built / f"{name}.html").is_file()] == []
    assert len(wanted) > 20
    home = Page(built / "index.html")
    assert [name for name in wanted if f"{name}.html" not in home.links] == []


def test_every_link_of_the_built_site_leads_to_a_file_and_an_anchor(built):
    page = cache(Page)
    wrong, looked_at = [], 0
    for file in built.rglob("*.html"):
        for link in [*page(file).links, *page(file).loads]:
            if re.match(r"(https?|mailto|data):", link):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            looked_at += 1
            if not target.is_file() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in page(target).anchors
            ):
                wrong.append(f"{file.relative_to(built)}: {link}")
    assert wrong == []
    assert looked_at > 1000


def test_nothing_is_fetched_from_elsewhere(built):
    loads = [(file.name, load) for file in built.rglob("*.html") for load in Page(file).loads]
    assert [one for one in loads if re.match(r"(https?:)?//", one[1])] == []
    styles = "".join(file.read_text(encoding="utf-8") for file in built.rglob("*.css"))
    assert re.findall(r"@import|url\(['\"]?(?:https?:)?//[^)]*", styles) == []


@pytest.mark.parametrize("text", ["[x](#no-such-heading)", "[x](no-such-page.md)", "[x](other.md#no-such-heading)"])
def test_a_link_that_leads_nowhere_is_an_error(site, tmp_path, text, capfd):
    from sphinx.cmd.build import build_main

    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text(f"# Home\n\n{text}\n\n```{{toctree}}\nother\n```\n")
    (source / "other.md").write_text("# Other\n")
    assert (
        build_main(["-b", "html", "-q", "-W", "-c", str(ROOT / "docs/site"), str(source), str(tmp_path / "out")]) != 0
    )
    assert "no-such" in capfd.readouterr().err


def test_a_link_to_no_file_of_the_project_is_an_error(site, monkeypatch, tmp_path):
    monkeypatch.setattr(site["pages"], "with_pictures", lambda name, text: f"{text}\n[x](no-such.json)\n")
    with pytest.raises(site["pages"].SiteError, match=r"no-such\.json names no file of the project"):
        site["pages"].stage(tmp_path)


def test_a_page_that_no_navigation_names_is_an_error(site, monkeypatch, tmp_path):
    pages = site["pages"]
    monkeypatch.setitem(pages.NAVIGATION, "Start", pages.NAVIGATION["Start"][1:])
    with pytest.raises(pages.SiteError, match="NAVIGATION names docs/start/laptop.md nowhere"):
        pages.stage(tmp_path)


def test_diagrams_have_pictures_and_pictures_diagrams(site):
    diagrams = site["diagrams"]
    wanted = {diagrams.picture_of(one) for each in diagrams.pages_with_diagrams().values() for one in each}
    assert wanted == {file.relative_to(ROOT).as_posix() for file in (ROOT / diagrams.PICTURES).glob("*")}
    with pytest.raises(diagrams.NoPictureError, match=r"page\.md: a diagram has no picture .*diagrams\.py"):
        diagrams.with_pictures("page.md", "```mermaid\nflowchart TD\n  a --> new\n```")


def classes_by_section():
    tables = {
        "data": (data.DATA, names.datasets()),
        "model": (model.MODEL, names.models()),
        "optimizer": (optimizer.OPTIMIZER, names.optimizers()),
        "quantizer": (quantizer.QUANTIZER, names.methods()),
        "task": (task.TASK, names.tasks()),
    }
    for section, (table, known) in tables.items():
        for name in known:
            yield section, name, table.get(name)


@pytest.mark.parametrize(("section", "name", "options"), classes_by_section())
def test_every_name_of_a_section_has_all_its_options_on_the_sections_page(options_pages, section, name, options):
    page = options_pages[f"options/{section}.md"]
    heading = next(line for line in page.splitlines() if line.startswith("## ") and f"`{name}`" in line)
    under = page.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    common = page.partition("\n## With any")[2].partition("\n## ")[0]
    assert f"| `{name}` |" in under
    if options is not None:
        shown = re.findall(r"^\| `(\w+)` \|", under + common, re.MULTILINE)
        assert set(options.model_fields) - {options.selector} <= set(shown)


def test_every_section_has_a_page_with_type_default_range_and_meaning(options_pages):
    pages = options_pages
    for key, info in Trial.model_fields.items():
        assert f"options/{key}.md" in pages or f"| `{key}` |" in pages["options.md"], key
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            shown = re.findall(r"^\| `(\w+)` \|", pages[f"options/{key}.md"], re.MULTILINE)
            assert list(info.annotation.model_fields) == shown[: len(info.annotation.model_fields)]
    schedule = pages["options/schedule.md"]
    assert "| `batch_size` | integer from 1 to 2,147,483,647 | required | Examples per worker and step" in schedule
    assert "| `cooldown` | number from 1e-38 to 1 | `0.2` | Share of the run" in schedule
    assert "\n  iterations: null\n" in schedule
    assert "\n  batch_size: ...    # required\n" in schedule
    root = next(line for line in pages["options/data.md"].splitlines() if line.startswith("| `root` | text, or `null`"))
    assert root.endswith("Not part of a trial's id. |")
    assert "| `levels` | `shared`, `layer` | `shared` |" in pages["options/quantizer.md"]


def test_an_option_without_a_docstring_is_an_error(site, tmp_path, monkeypatch):
    (tmp_path / "undocumented.py").write_text(
        "from lqray.experiment.options.telemetry import TelemetryOptions\n\n\n"
        "class MoreOptions(TelemetryOptions):\n"
        '    """More."""\n\n    told: int = 1\n    """It is."""\n    untold: int = 1\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    page = site["options_page"]
    more = importlib.import_module("undocumented").MoreOptions
    assert page.documented(more, "told") == "It is."
    assert page.documented(more, "every").startswith("Iterations between measurements")
    with pytest.raises(page.UndocumentedError, match=r"undocumented\.MoreOptions\.untold has no docstring"):
        page._options(more, more.model_fields)


def test_a_key_of_a_file_that_nothing_is_said_of_is_an_error(site, monkeypatch):
    page = site["options_page"]
    monkeypatch.setattr(page.layout, "_SECTIONS", (*page.layout._SECTIONS, "later"))
    with pytest.raises(page.UndocumentedError, match="what later of a file means"):
        page.pages()


def test_every_command_and_option_is_on_the_commands_page(site):
    text = site["commands_page"].page()
    for name, command in main.commands.items():
        part = text.partition(f"\n## `lqray {name}`\n")[2].partition("\n## ")[0]
        assert f"lqray {name} " in part
        for option in command.params:
            if isinstance(option, click.Option):
                assert f"`{option.opts[0]}" in part, (name, option.opts)
    assert "| `--port INTEGER` (from 1 to 65535) | `5000` | Port to listen on. |" in text
    assert "environment variable `MLFLOW_TRACKING_URI`" in text


def test_a_command_option_without_help_is_an_error(site, monkeypatch):
    page = site["commands_page"]
    silent = click.Command("silent", params=[click.Option(["--what"])], help="It does.", callback=lambda what: None)
    monkeypatch.setitem(main.commands, "silent", silent)
    with pytest.raises(page.UndocumentedError, match="lqray silent: --what has no help"):
        page.page()


def imported_names() -> set[str]:
    """What examples and the Python of guides import from lqray's modules, and name with all their dots."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "examples").rglob("*.py")]
    for file in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        texts += re.findall(r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = set()
    for text in texts:
        for module, listed in re.findall(r"^from (lqray\.[\w.]+) import ([\w, ]+)$", text, re.MULTILINE):
            found |= {f"{module}.{name.strip()}" for name in listed.split(",")}
        found |= set(re.findall(r"\blqray\.[a-z_]+\b(?!\.|\s+import)", text))
    return found


def test_every_public_name_and_all_that_documents_import_is_on_the_python_page(site):
    known, text = site["python_page"].names(), site["python_page"].page()
    assert {f"lqray.{name}" for name in lqray.__all__} <= known
    modules = {name for name in known if name.count(".") > 1}
    assert {name for name in imported_names() if name.count(".") > 1} - modules == set()
    assert [name for name in known if f"### `{name}`" not in text] == []


def test_a_public_name_without_a_docstring_is_an_error(site, monkeypatch):
    page = site["python_page"]
    monkeypatch.setattr(lqray.api.Swept.report, "__doc__", None)
    with pytest.raises(page.UndocumentedError, match=r"lqray\.api\.Swept\.report has no docstring"):
        page.page()


_PREFIXES = ("LQRAY", "RAY", "MLFLOW", "TUNE", "TORCH", "TORCHELASTIC", "NCCL", "GLOO", "CUDA", "XDG")
_NAMES = {
    "CXX",
    "TMPDIR",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "DISPLAY",
    "WAYLAND_DISPLAY",
}
_NAMES |= {"PYTHONSAFEPATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}


def variables_of_the_code() -> dict[str, str]:
    """Every environment variable that lqray, its kernels, its scripts for machines or its tests read, and where."""
    found = {}
    wanted = re.compile(rf"(?:{'|'.join(_PREFIXES)})_[A-Z0-9_]+|{'|'.join(_NAMES)}")
    for file in (ROOT / "lqray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and wanted.fullmatch(node.value):
                found[node.value] = file.name
    for pattern, folder, files in (
        (r"getenv\(\"(\w+)\"\)", "csrc", "*"),
        (r"\b(LQRAY_[A-Z_]+)", "deploy", "*"),
        (r"environ(?:\.get\(|\[)\"(LQRAY_(?:TEST|FUZZ|CUDA)\w*)\"", "tests", "**/*.py"),
        (r"\"(LQRAY_TEST_\w+)\" not in os\.environ", "tests", "**/*.py"),
    ):
        for file in (ROOT / folder).glob(files):
            if file.is_file() and file.suffix != ".so":
                found |= dict.fromkeys(re.findall(pattern, file.read_text(encoding="utf-8")), file.name)
    return found


def test_every_environment_variable_is_on_its_page_and_no_other():
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([A-Z][A-Z0-9_]+)(?:=\w+)?`", page))
    code = variables_of_the_code()
    assert {name: file for name, file in code.items() if name not in told} == {}
    assert len(code) > 60
    everything = subprocess.run(
        ["git", "grep", "-hoE", r"\bLQRAY_[A-Z_]+", "--", ":!docs"], cwd=ROOT, capture_output=True, text=True
    )
    assert {name for name in told if name.startswith("LQRAY_")} - set(everything.stdout.split()) == set()
