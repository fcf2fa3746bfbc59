"""Every command that lqray prints, or its documents show, is one that can be typed so."""

import re
import shlex
import subprocess

import pytest
import yaml

from lqray.cli import main
from tests.testing.hints import ROOT, HintError, check, commands_in, documented, printed

SOURCES = sorted((ROOT / "lqray").rglob("*.py"))
DOCUMENTS = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not name.startswith("experiments/results/")  # exports of an earlier day
]
WRITTEN = {"experiments/first.yaml"}
"""By `lqray init`, which a page has people call first."""
_FOLDERS = re.compile(r"(experiments|lqray|tests|benchmarks|deploy|docs)/")


def hints(docstrings: bool):
    """(where, command, whether it is meant to be typed) of every string in lqray's sources."""
    for file in SOURCES:
        for line, text, is_docstring in printed(file):
            if is_docstring == docstrings:
                for command in commands_in(text):
                    yield f"{file.relative_to(ROOT)}:{line}", command, not docstrings


def wrong(found) -> list[str]:
    """What is wrong with each of (where, command, whether it is meant to be typed) that is not right."""
    problems = []
    for where, command, whole in found:
        try:
            check(command, whole)
        except HintError as error:
            problems.append(f"{where}: {error}")
    return problems


@pytest.mark.parametrize(
    "command",
    [
        *("lqray faliures NAME", "lqray failures", "lqray failures NAME OTHER", "lqray run FILE --limitt 3"),
        *("lqray run FILE --limit some", "lqray plot NAME", "lqray plot NAME --kind curve", "make", "make everything"),
        *("ray job stopp ID", "ray up", "python -m mlflow db upgrade", "python -m tests.nothing", "python nothing.py"),
        *(
            "ray job submit -- python -m lqray rn FILE",
            "torchrun -m lqray train",
            "torchrun nothing.py",
            ".venv/bin/lqray ui A B",
        ),
    ],
)
def test_a_command_that_could_not_be_typed_is_noticed(command):
    with pytest.raises(HintError):
        check(command)


@pytest.mark.parametrize(
    "command",
    [
        *("lqray run FILE... --limit N", "lqray expand FILE [--format json]", "lqray submit FILE... [options of run]"),
        *("RAY_ADDRESS=... lqray doctor [FILE] [--cluster]", "lqray plot NAME --kind KIND", "make PYTHON=python3 run"),
        *("ray job submit -- python -m lqray run FILE", "python -m tests.faults --pairs 3", "lqray --version"),
    ],
)
def test_a_command_with_words_in_the_place_of_values_is_one(command):
    check(command)


def test_a_sentence_need_not_say_all_that_a_command_wants():
    for command in ("lqray run", "lqray run --dry-run", "lqray plot --kind", "ray job stop"):
        check(command, whole=False)
    for command in ("lqray rn", "lqray run --dryrun", "lqray failures A B", "ray job stopp"):
        with pytest.raises(HintError):
            check(command, whole=False)


def test_commands_are_found_in_what_is_printed():
    line = "trial failed. With tracebacks:  lqray failures sweep --uri x\nmore; `lqray run FILE`, or lqray stop it"
    assert sorted(commands_in(line)) == ["lqray failures sweep --uri x", "lqray run FILE"]
    found = {command for _, command, _ in hints(docstrings=False)}
    assert len(found) > 30
    stop = "RAY_AUTH_MODE=token ray job stop PLACEHOLDER"
    assert {"lqray failures PLACEHOLDER", f"ray exec PLACEHOLDER '{stop}'"} <= found


def test_every_command_that_is_printed_is_complete():
    """Names of commands without what they need are none: a hint is typed as it stands."""
    assert wrong(hints(docstrings=False)) == []


def test_every_command_of_a_docstring_is_one():
    assert wrong(hints(docstrings=True)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_of_a_document_is_one_and_its_files_are_there(document):
    found = list(documented(document))
    assert wrong((document.name, command, whole) for command, whole in found) == []
    for command, _ in found:
        for word in shlex.split(command.partition(" #")[0].replace("...", "")):
            assert not _FOLDERS.match(word) or word in WRITTEN or (ROOT / word.partition(":")[0]).exists(), command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_has_each_heading_once(document):
    """Twice: an edit has copied a part of it."""
    headings = re.findall(r"^#+ .*", re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S), re.MULTILINE)
    assert len(set(headings)) == len(headings)


def test_documents_were_read():
    assert sum(1 for document in DOCUMENTS for _ in documented(document)) > 100


def test_experiments_that_documents_name_are_those_of_files_here():
    names = {yaml.safe_load(file.read_text())["name"] for file in (ROOT / "experiments").glob("*.yaml")}
    asked = set()
    for command, _ in (found for document in DOCUMENTS for found in documented(document)):
        program, name, *words = shlex.split(command.partition(" #")[0])
        if program == "lqray" and name in ("report", "plot", "status", "ui", "export"):
            context = main.commands[name].make_context(name, words, resilient_parsing=True)
            asked |= {context.params.get("experiment"), *(context.params.get("experiments") or ())}
    asked = {one for one in asked if one and re.fullmatch(r"[a-z][a-z0-9_-]*", one)}
    assert asked
    assert asked <= names
