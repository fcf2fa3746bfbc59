"""Every block of README.md and of the pages in docs/start is executed as it stands, in order, in a fresh directory; or
named below with the test that executes it; or is an output, whose form is compared with what was printed."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lqray.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs/start").glob("*.md"))]
_BLOCK = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^\1```$")
_MARK = "@@ block "
_WAIT = 900


@dataclass(frozen=True)
class Block:
    """Of a page, by the number of the line that opens it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def head(self) -> str:
        """Its first line, without a comment."""
        return self.text.splitlines()[0].partition("  #")[0].strip()


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[2], textwrap.dedent(found[3]))
        for found in _BLOCK.finditer(text)
    ]


ALL = [block for page in PAGES for block in blocks(page)]

ELSEWHERE = {
    ("README.md", "git clone URL lqray && cd lqray"): (".ci/run", ("git clone", "make run")),
    ("docs/start/laptop.md", "git clone URL lqray && cd lqray"): (".ci/run", ("git clone", "make run")),
    ("docs/start/laptop.md", "python3 -m venv .venv && . .venv/bin/activate"): (
        "tests/test_install.py",
        ("pip install", '"build-native"', '"doctor"'),
    ),
    ("docs/start/laptop.md", "lqray ui experiments/first.yaml"): (
        "tests/cli/test_every_command.py",
        ('"ui": (', "SERVING"),
    ),
    ("docs/start/cluster.md", "ray up cluster.yaml"): ("tests/cluster/test_ray_up.py", ('"ray", "up"', "cluster.yaml")),
    ("docs/start/cluster.md", "lqray submit experiments/quickstart.yaml --cluster cluster.yaml"): (
        "tests/cluster/test_ray_up.py",
        ('"lqray", "submit"', '"--cluster", "cluster.yaml"'),
    ),
    ("docs/start/slurm.md", "sbatch --nodes=2 deploy/slurm.sh experiments/quickstart.yaml"): (
        "tests/cluster/test_slurm.py",
        ("deploy/slurm.sh", "Ray on 2 nodes"),
    ),
}
"""By page and first line of a block of commands: the file that executes them where this one cannot (a clone with a
network, other machines, a browser), and what it must have of them."""

PYTHON_ELSEWHERE = {
    "docs/start/own-script.md": ("tests/communication/test_own_script.py", '"docs/start/own-script.md"')
}
"""Pages all of whose Python is executed there, block after block, under torchrun."""

SHELLS = ("bash", "zsh", "fish")


def presupposed_by_laptop(folder: Path) -> None:
    """What `make run` has left in a clone: .venv, and the experiments."""
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("results", "figures"))
    (folder / ".venv").symlink_to(sys.prefix)
    if not (folder / ".venv/bin/activate").exists():
        pytest.skip("these tests do not run in a virtual environment, which the page activates")


def presupposed_by_own_script(folder: Path) -> None:
    """The source tree's example."""
    shutil.copytree(ROOT / "examples", folder / "examples")


def presupposed_by_cluster(folder: Path) -> None:
    """The source tree."""
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "pull", "-q", str(ROOT), "HEAD"], cwd=folder, check=True)


PRESUPPOSED = {
    "docs/start/laptop.md": presupposed_by_laptop,
    "docs/start/own-script.md": presupposed_by_own_script,
    "docs/start/cluster.md": presupposed_by_cluster,
}


def is_executed(block: Block) -> bool:
    return block.language in SHELLS and (block.page, block.head) not in ELSEWHERE


def environment(folder: Path) -> dict[str, str]:
    """A user's, whose home is empty; lqray is this tree's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LQRAY_", "MLFLOW_", "XDG_"))}
    own = {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    own["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | own


def typed(block: Block) -> str:
    """What a shell is given. Of the lines for another shell, which need not be here, what they have lqray do."""
    if block.language == "bash":
        return block.text
    (command,) = re.findall(rf"_LQRAY_COMPLETE={block.language}_source lqray", block.text)
    return command


def executed(page: str, folder: Path) -> dict[int, str]:
    """What the blocks of a page print, by their lines, in one shell."""
    folder.mkdir()
    (folder / "home").mkdir()
    if page in PRESUPPOSED:
        PRESUPPOSED[page](folder)
    chosen = [block for block in blocks(page) if is_executed(block)]
    script = "set -eo pipefail\n" + "".join(f"echo; echo '{_MARK}{one.line}'\n{typed(one)}\n" for one in chosen)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_WAIT,
    )
    assert done.returncode == 0, f"{page}:\n{done.stdout}"
    parts = re.split(rf"(?m)^{_MARK}(\d+)$", done.stdout)
    return dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """(folder, what was printed) of the page that the others share."""
    folder = tmp_path_factory.mktemp("documented") / "lqray"
    return folder, executed("docs/start/laptop.md", folder)


def said_by(page: str, printed: dict[int, str], command: str) -> str:
    """What the block printed that has a command."""
    (line,) = [block.line for block in blocks(page) if command in block.text and block.line in printed]
    return printed[line]


def kind_of(block: Block) -> str:
    """How a block is tested; "" where it is not."""
    if block.language in SHELLS:
        return "elsewhere" if (block.page, block.head) in ELSEWHERE else "executed"
    if block.language == "python":
        return "elsewhere" if block.page in PYTHON_ELSEWHERE else "executed" if block.page == "README.md" else ""
    if block.language in ("yaml", "bibtex"):
        return "executed" if block.page == "README.md" else ""
    return "output" if (block.page, block.head) in OUTPUTS else ""


OUTPUTS = {
    ("docs/start/laptop.md", "bits per      bytes"): "test_a_launch_ends_with_a_table_of_the_form_that_is_shown",
    (
        "docs/start/cluster.md",
        "MLFLOW_TRACKING_URI=https://mlflow.example.org",
    ): "test_variables_shown_are_known",
    (
        "docs/start/cluster.md",
        "quickstart-1c6d2f03ab: submitted, 516 files, 2.1 MB",
    ): "test_what_submit_says_is_shown",
}
"""Blocks that are what is printed or written, by page and first line, and the test here that compares them."""


@pytest.mark.parametrize("block", ALL, ids=lambda one: f"{one.page}:{one.line}")
def test_no_block_is_left_out(block):
    assert kind_of(block), f"{block.page}:{block.line} is neither executed nor listed: {block.text}"


def test_lists_name_blocks_and_tests_that_are_there():
    heads = {(block.page, block.head) for block in ALL}
    assert ELSEWHERE.keys() <= heads
    assert OUTPUTS.keys() <= heads
    assert all(name in globals() for name in OUTPUTS.values())
    assert PYTHON_ELSEWHERE.keys() <= {block.page for block in ALL if block.language == "python"}


@pytest.mark.parametrize(
    ("file", "wanted"),
    [*ELSEWHERE.values(), *((file, (text,)) for file, text in PYTHON_ELSEWHERE.values())],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_listed_is_in_the_test_that_is_named(file, wanted):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert [one for one in wanted if one not in text] == []


@pytest.mark.ray
@pytest.mark.processes
def test_the_page_for_a_laptop_is_followed_word_by_word(laptop):
    folder, printed = laptop
    page = "docs/start/laptop.md"
    assert "experiments/first.yaml is an experiment of your own" in said_by(page, printed, "lqray init")
    first = said_by(page, printed, "lqray run experiments/first.yaml\n")
    assert "digits: 1,437 training examples" in first
    assert "first: 6 trials" in first
    assert first.count("finished in") == 6
    assert "6 would run" in said_by(page, printed, "--dry-run")
    looked = said_by(page, printed, "lqray report")
    assert re.search(r"full_precision +2 ", looked)
    assert "loss" in looked
    assert (folder / "figures/first-curves.svg").is_file()
    assert "#compdef lqray" in said_by(page, printed, "zsh_source")
    assert "complete" in said_by(page, printed, "fish_source")


@pytest.mark.ray
@pytest.mark.processes
def test_a_launch_ends_with_a_table_of_the_form_that_is_shown(laptop):
    _, printed = laptop
    (shown,) = [block.text for block in blocks("docs/start/laptop.md") if "interval" in block.text]
    said = said_by("docs/start/laptop.md", printed, "lqray run experiments/first.yaml\n")
    for text in (shown, said):
        assert re.search(r"method +runs +test accuracy +95% interval +- full_precision", text)
    rows = {
        text: dict(re.findall(r"(?m)^ *(full_precision|qsgd_inf|alq) +(\d +\d\d\.\d\d% ± .*?) *$", text))
        for text in (shown, said)
    }
    assert rows[shown].keys() == rows[said].keys() == {"full_precision", "qsgd_inf", "alq"}
    number = r"\d +\d+\.\d\d% ± \d\.\d\d +\[\d+\.\d+, \d+\.\d+\] +"
    for method in ("qsgd_inf", "alq"):
        compared = number + r"[+-]\d+\.\d\d% \[-?\d+\.\d+, -?\d+\.\d+\] \(p [\d.]+\) +3\.1\d\d .*10\.2×"
        assert all(re.match(compared, rows[text][method]) for text in rows), rows


@pytest.mark.processes
@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("docs/start/own-script.md", [r"epoch 1: accuracy 0\.\d+, \d+ bytes sent, 10\.\d times fewer"]),
        ("docs/start/cluster.md", [r"\n[0-9a-f]{64}\n", r"would be sent: \d+ files, \d\.\d MB"]),
    ],
)
def test_other_pages_are_followed_word_by_word(tmp_path, page, expected):
    printed = "".join(executed(page, tmp_path / "fresh").values())
    assert [one for one in expected if not re.search(one, printed)] == [], printed
    if page == "docs/start/cluster.md":
        token = tmp_path / "fresh/home/.ray/auth_token"
        assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.processes
def test_the_five_lines_of_the_readme_run(tmp_path):
    (block,) = [one for one in blocks("README.md") if one.language == "python"]
    assert len([line for line in block.text.splitlines() if line]) == 5
    assert block.text == next(one.text for one in blocks("docs/start/own-script.md") if one.language == "python")
    step = "model(torch.randn(8, 64)).square().mean().backward()\nprint(exchange.volume)\nexchange.close()\n"
    (tmp_path / "script.py").write_text(f"{block.text}\n{step}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    (tmp_path / "home").mkdir()
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Volume(") == 2, done.stdout


def test_the_file_of_the_readme_is_an_experiment_that_can_run(tmp_path, monkeypatch):
    (block,) = [one for one in blocks("README.md") if one.language == "yaml"]
    assert len(block.text.splitlines()) <= 15
    (tmp_path / "few.yaml").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    for command, expected in ((["expand", "few.yaml"], "6 trials"), (["run", "few.yaml", "--dry-run"], "6 would run")):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert expected in done.output


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_what_the_readme_cites_is_what_the_file_says():
    (block,) = [one for one in blocks("README.md") if one.language == "bibtex"]
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = told["references"]
    plain = block.text.replace("{", "").replace("}", "")
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    for said in (paper["title"], authors, paper["collection-title"], told["title"], told["authors"][0]["name"]):
        assert said in plain
    assert f"version = {told['version']}" in plain
    assert f'version = "{told["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert told["license"] == "Apache-2.0"


def test_variables_shown_are_known():
    (block,) = [one for one in blocks("docs/start/cluster.md") if one.head.startswith("MLFLOW_TRACKING_URI=")]
    reference = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    names = [line.partition("=")[0] for line in block.text.splitlines()]
    assert len(names) == 5
    assert [name for name in names if f"`{name}`" not in reference] == []


def test_what_submit_says_is_shown():
    (block,) = [one for one in blocks("docs/start/cluster.md") if "submitted," in one.text]
    source = (ROOT / "lqray/cli/submission.py").read_text() + (ROOT / "lqray/orchestration/provenance.py").read_text()
    assert "submitted, " in source
    assert ", code {" in source
    lines = block.text.splitlines()
    assert re.fullmatch(r"quickstart-[0-9a-f]{10}: submitted, \d+ files, \d\.\d MB", lines[0])
    assert re.match(r"lqray \d\.\d\.\d, code [0-9a-f]{12}, from .*; Python [\d.]+, Ray [\d.]+, on \w+", lines[1])


def completed(*words: str) -> list[str]:
    """What the shell is told for a line of which the last word is being typed."""
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_LQRAY_COMPLETE": "bash_complete"}
    done = CliRunner().invoke(main, [], env=asked, prog_name="lqray")
    return [line.partition(",")[2] for line in done.output.splitlines()]


def test_tab_completes_commands_options_values_and_files():
    assert {"report", "relocate"} <= set(completed("lqray", "re"))
    assert set(main.commands) <= set(completed("lqray", ""))
    assert "--dry-run" in completed("lqray", "run", "--d")
    assert completed("lqray", "run", "a.yaml", "--launcher", "w") == ["warm"]
    done = CliRunner().invoke(
        main, [], prog_name="lqray",
        env={"COMP_WORDS": "lqray run exp", "COMP_CWORD": "2", "_LQRAY_COMPLETE": "bash_complete"},
    )  # fmt: skip
    assert done.output.strip() == "file,exp"
