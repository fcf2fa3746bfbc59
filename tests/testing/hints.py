"""Commands in texts: where lqray prints one, or a document shows one, and whether it could be typed so."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

from lqray.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("lqray", "make", "ray", "mlflow")
_PLACEHOLDER = "PLACEHOLDER"
_VARIABLES = re.compile(r"^(?:[A-Z_]+=(?:'[^']*'|\S*) )*")
_BLOCK = re.compile(r"(?ms)^```\w*\n(.*?)^```")
# Not in backticks: at the beginning of a line, or behind what announces a command.
_UNQUOTED = re.compile(r"(?:^|\n|:  |Usage: )((?:[A-Z_]+=\S+ )*(?:lqray|ray|mlflow) [a-z-]+ [^\n;]*)")


class HintError(ValueError):
    """A command that does nothing as it stands. Says what is wrong with it."""


def commands_in(text: str) -> Iterator[str]:
    """Commands of a text of lqray's: those in blocks of code, a line each, in backticks, and those that stand alone."""
    yield from _in_blocks(text)
    text = _BLOCK.sub("", text)
    for span in re.findall(r"`([^`]+)`", text):
        if is_command(one_line := " ".join(span.split())):
            yield one_line
    for found in _UNQUOTED.findall(re.sub(r"`[^`]*`", "", text)):
        if _words(found)[1] in _of_program(_words(found)[0]).commands:
            yield found.strip()


def _in_blocks(text: str) -> Iterator[str]:
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if is_command(one_line := " ".join(line.split())):
                yield one_line


def is_command(text: str) -> bool:
    """Whether a span of code begins with a program that is looked at here, or has Python or torchrun run something."""
    program, _, rest = _VARIABLES.sub("", text).partition(" ")
    if Path(program).name in PROGRAMS:
        return program == "make" or bool(re.match(r"-|[a-z-]+( |$)", rest))
    return program == "torchrun" or ("python" in program and bool(rest) and not rest.startswith("-c"))


def check(command: str, whole: bool = True) -> None:
    """Raise HintError unless a shell and the program would take this command: its subcommands, options and the number
    of arguments; a target of the Makefile; a module or file that Python runs. [What may be left out] is, and is not;
    FILE..., N and parts that were interpolated stand for a value.

    whole: False where a sentence is about the command, and need not say all that it wants: `lqray run --dry-run`."""
    full = re.sub(r"\[(?!options)([^]]*)\]", r"\1", command)
    for variant in dict.fromkeys((re.sub(r"\[[^]]*\]", "", command), re.sub(r"\[[^]]*\]", "", full))):
        _check(variant, whole)


def _check(command: str, whole: bool) -> None:
    words = _words(command)
    program = Path(words[0]).name
    if program == "torchrun" and "-m" not in words:
        _check_script(words)
        return
    if ("-m" in words and "python" in program) or program == "torchrun":
        at = words.index("-m")
        program, words = words[at + 1], words[at + 1 :]
    if program == "make":
        _check_make(words[1:])
    elif program in PROGRAMS:
        if "--" in words and "lqray" in words[words.index("--") :]:
            _check(shlex.join(words[words.index("--") + 1 :]), whole)
        _check_click(_of_program(program), words[1:], command, whole)
    else:
        _check_python(program, words[1:])


def _check_script(words: list[str]) -> None:
    """That torchrun is given a script, of an example's folder."""
    scripts = [word for word in words if word.endswith(".py")]
    if not scripts or not ((ROOT / scripts[0]).is_file() or any(ROOT.glob(f"examples/*/{scripts[0]}"))):
        raise HintError(f"torchrun runs no script of an example: {shlex.join(words)}")


def _words(command: str) -> list[str]:
    """As a shell splits it: without variables, comments, and what follows a pipe or a redirection."""
    bare = re.split(r" #| \|| >| && |;", _VARIABLES.sub("", command))[0]
    return [word.removesuffix("...") or _PLACEHOLDER for word in shlex.split(bare)]


@cache
def _of_program(program: str) -> click.Group:
    if program == "ray":
        from ray.scripts.scripts import cli as found
    elif program == "mlflow":
        from mlflow.cli import cli as found
    else:
        found = main
    return found


def _check_click(program: click.Command, words: list[str], command: str, whole: bool) -> None:
    while isinstance(program, click.Group) and not (words and words[0].startswith("-")):
        if not words and not whole:
            return
        if not words or words[0] not in program.commands:
            raise HintError(f"{command}: no command {' '.join(words[:1])!r}; there are {', '.join(program.commands)}")
        program, words = program.commands[words[0]], words[1:]
    try:
        program.make_context(program.name, _with_values(program, words)).close()
    except click.UsageError as error:
        said_less = isinstance(error, click.MissingParameter) or "requires an argument" in str(error)
        if said_less and not whole:
            return
        raise HintError(f"{command}: {error.format_message()}") from error
    except click.exceptions.Exit:  # of --help
        return


def _with_values(command: click.Command, words: list[str]) -> list[str]:
    """With a value where an option has a word that stands for one."""
    options = {name: one for one in command.params if isinstance(one, click.Option) for name in one.opts}
    values = list(words)
    for at, word in enumerate(words[1:], start=1):
        option = options.get(words[at - 1])
        if option is None or option.is_flag or not re.fullmatch(r"[A-Z_]+", word):
            continue
        if isinstance(option.type, click.Choice):
            values[at] = str(option.type.choices[0])
        elif not isinstance(option.type, click.types.StringParamType | click.Path):
            values[at] = "2"
        elif option.name == "kind":
            values[at] = "all"
    return values


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"(?m)^([a-z][\w-]*):", (ROOT / "Makefile").read_text())
    asked = [word for word in words if "=" not in word]
    if not asked or not set(asked) <= {*targets, _PLACEHOLDER}:
        raise HintError(f"make {' '.join(words)}: found {asked or 'no target'}; there are {', '.join(targets)}")


def _check_python(program: str, words: list[str]) -> None:
    """A module, or a file behind `python`; and the files of its arguments."""
    if "python" in program:
        program, words = words[0], words[1:]
    module = ROOT / program.replace(".", "/")
    known = module.is_dir() or module.with_suffix(".py").is_file() or (ROOT / program).is_file()
    known = known or program in ("pytest", "venv")
    missing = [
        word for word in words if re.match(r"(tests|benchmarks|experiments)/", word) and not (ROOT / word).exists()
    ]
    if not known or missing:
        raise HintError(f"there is no {missing or program}")


def printed(file: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is a docstring) of every string in a source file. Parts that are interpolated are a word;
    lists that begin with a program are a command."""
    tree = ast.parse(file.read_text())
    inner = {id(part) for one in ast.walk(tree) if isinstance(one, ast.JoinedStr) for part in ast.walk(one)}
    statements = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and id(node) not in inner):
            if isinstance(text := _text(node), str):
                yield node.lineno, text, id(node) in statements
        elif isinstance(node, ast.List) and node.elts and _text(node.elts[0]) in PROGRAMS:
            words = [_text(one) for one in node.elts]
            yield node.lineno, "`" + shlex.join(str(word) for word in words) + "`", False


def _text(node: ast.AST) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(_text(part)) for part in node.values)
    source = ast.unparse(node.value) if isinstance(node, ast.FormattedValue) else ""
    if source.endswith("program()"):
        return "lqray"
    return "python" if "sys.executable" in source else _PLACEHOLDER


def documented(file: Path) -> Iterator[tuple[str, bool]]:
    """(command, whether it is meant to be typed) of a Markdown file: those in blocks of code; and those in sentences,
    of which some leave the program out where one before them in the paragraph had it."""
    text = file.read_text()
    for command in _in_blocks(text):
        yield command, True
    for paragraph in re.split(r"\n\s*\n|\n(?=[|*])", _BLOCK.sub("", text)):
        seen = False
        for span in re.findall(r"`([^`]+)`", paragraph):
            one_line = " ".join(span.split())
            if is_command(one_line):
                seen = seen or one_line.startswith("lqray ")
                yield one_line, False
            elif seen and " " in one_line and one_line.split()[0] in main.commands:
                yield f"lqray {one_line}", False
