"""The page of every command, made of what click knows of it."""

from __future__ import annotations

import inspect
import re

import click
from markdown import one_line, paragraphs, table
from options_page import UndocumentedError

from lqray.cli import main


def page() -> str:
    """Markdown: usage, help and options of every command. Raises UndocumentedError for one that says nothing."""
    blocks = [
        "# Commands",
        paragraphs(inspect.cleandoc(main.help or "")),
        "`lqray COMMAND --help` says the same. Exit codes: 0, done; 1, something failed; 2, nothing was done, and the "
        "message says what to mend; 130, interrupted.",
        table(
            ("command", "what"),
            [[f"[`{name}`](#lqray-{name})", one_line(_first(command))] for name, command in _commands()],
        ),
    ]
    for name, command in _commands():
        blocks += _command(name, command)
    return "\n\n".join(blocks)


def _commands() -> list[tuple[str, click.Command]]:
    return list(main.commands.items())


def _command(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"lqray {name}")
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    blocks = [f"## `lqray {name}`", f"```\n{usage}\n```", paragraphs(_without_marks(_help(name, command)))]
    rows = [
        _row(name, option, context)
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]
    return [*blocks, table(("option", "default", "what"), rows)] if rows else blocks


def _row(name: str, option: click.Option, context: click.Context) -> list[str]:
    record = option.get_help_record(context)
    if record is None or not option.help:
        raise UndocumentedError(f"lqray {name}: {option.opts[0]} has no help: say what it does")
    flags, default = record[0], option.get_default(context, call=False)
    shown = f"`{default}`" if _tells(option, default) else ""
    variable = f" Or the environment variable `{option.envvar}`." if isinstance(option.envvar, str) else ""
    repeated = " May be repeated." if option.multiple and "repeat" not in option.help else ""
    return [_typed(option, flags), shown, one_line(option.help) + repeated + variable]


def _typed(option: click.Option, flags: str) -> str:
    """Its names, with what stands behind them: choices and ranges are written out."""
    text = f"`{flags.replace(' RANGE', '')}`"
    if isinstance(option.type, click.IntRange | click.FloatRange):
        low, high = option.type.min, option.type.max
        limits = [f"from {low:g}" if low is not None else "", f"to {high:g}" if high is not None else ""]
        text += f" ({' '.join(filter(None, limits))})" if any(limits) else ""
    return text.replace("|", "\\|")


def _tells(option: click.Option, default: object) -> bool:
    """Whether a default says anything that a reader would not think."""
    return isinstance(default, str | int | float) and not option.is_flag and default != ""


def _help(name: str, command: click.Command) -> str:
    if not command.help:
        raise UndocumentedError(f"lqray {name} has no help: say what it does")
    return inspect.cleandoc(command.help)


def _first(command: click.Command) -> str:
    return re.split(r"(?<=[^.]\.)\s", _without_marks(command.help or "").strip())[0]


def _without_marks(text: str) -> str:
    """click's own marks of paragraphs that are not to be wrapped."""
    return text.replace("\b\n", "").replace("\f", "")
