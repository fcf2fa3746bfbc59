"""Commands that are printed and recorded begin as lqray was called, whatever way that was: they can be typed so."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lqray.orchestration import invocation
from lqray.orchestration.invocation import command, program
from tests.testing.hints import ROOT

SCRIPT = Path(sys.executable).with_name("lqray")
HERE = str(SCRIPT.parent)
SYSTEM = "/usr/local/bin:/usr/bin:/bin"


def other_python(folder: Path) -> Path:
    """Of an environment with a blank in its path, which finds all packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    Path(site, "these.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin/python"


def script_of(python: Path) -> Path:
    """As pip writes it where a path has blanks."""
    script = python.with_name("lqray")
    code = "import sys\nfrom lqray.cli import main\nsys.exit(main())\n"
    script.write_text(f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n{code}")
    script.chmod(0o755)
    return script


def said(asked: str, path: str, folder: Path) -> str:
    """What a shell prints that is told to run this, with only these programs on its PATH."""
    environment = os.environ | {"PATH": f"{path}:{SYSTEM}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", asked], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("called", "path", "begins"),
    [
        ("lqray", HERE, "lqray"),
        (f"{sys.executable} -m lqray", HERE, "lqray"),
        (f"{sys.executable} -m lqray", "/nowhere", f"{sys.executable} -m lqray"),
        (f"{sys.executable} {ROOT}/lqray", "/nowhere", f"{sys.executable} -m lqray"),
        (str(SCRIPT), "/nowhere", str(SCRIPT)),
        ("'OTHER/python' -m lqray", HERE, "'OTHER/python' -m lqray"),
        ("'OTHER/python' -m lqray", "OTHER", "lqray"),
        ("'OTHER/lqray'", "/nowhere", "'OTHER/lqray'"),
        ("'OTHER/lqray'", HERE, "'OTHER/lqray'"),
        ("lqray", "OTHER", "lqray"),
    ],
)
def test_what_is_printed_can_be_run(tmp_path, called, path, begins):
    if not SCRIPT.exists():
        pytest.skip(f"lqray is not installed beside {sys.executable}")
    other = str(tmp_path / "a b/bin")
    if "OTHER" in called + path:
        script_of(other_python(tmp_path / "a b"))
    called, path, begins = (text.replace("OTHER", other) for text in (called, path, begins))
    printed = said(f"{called} init 'my experiments'", path, tmp_path).splitlines()[-1].rpartition(":  ")[2]
    assert printed == f"{begins} run 'my experiments/quickstart.yaml'"
    assert "run [OPTIONS] FILE..." in said(f"{printed} --help", path, tmp_path)


@pytest.mark.parametrize("found", [None, "/bin/sh"])
def test_another_program_on_the_path_is_not_lqray(monkeypatch, found):
    monkeypatch.setattr(sys, "argv", ["/elsewhere/lqray/__main__.py", "run", "a b.yaml"])
    monkeypatch.setattr(invocation.shutil, "which", lambda _: found)
    assert program() == f"{shlex.quote(sys.executable)} -m lqray"
    assert command() == f"{shlex.quote(sys.executable)} -m lqray run 'a b.yaml'"


def test_the_command_of_another_program_is_the_one_that_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/work/study.py", "--lr", "1 2"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "study.py", "--lr", "1 2"])
    assert command() == "python study.py --lr '1 2'"
    monkeypatch.setattr(sys, "argv", ["-c", "7"])
    assert command() == "-c 7"
