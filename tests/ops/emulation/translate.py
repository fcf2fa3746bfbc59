"""CUDA C++ as C++ for the emulated machine: launches, shared memory and launch bounds are rewritten, lines stay."""

from __future__ import annotations

import re

_SKIPPED = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_KERNEL = re.compile(r"([A-Za-z_][\w:]*)\s*$")
_BOUNDED = re.compile(r"__launch_bounds__\s*\(([^()]*)\)\s*(\w+)\s*\(")
_SHARED = re.compile(
    r"(?P<extern>extern\s+)?__shared__\s+(?P<align>(?:__align__|alignas)\s*\([^()]*\)\s*)?"
    r"(?P<type>[\w:]+(?:\s*<[^<>;]*>)?(?:\s+[\w:]+)*?)\s+(?P<name>\w+)\s*(?P<size>(?:\[[^\[\]]*\]\s*)*);"
)


class NotUnderstoodError(Exception):
    """A place of the source that is not rewritten."""


def translate(source: str, name: str) -> str:
    """The source, whose first line is that of the file `name` to the compiler.
    Raises NotUnderstoodError for a launch or a declaration of another shape."""
    text = _shared(_bounds(_launches(source)))
    for left in ("<<<", "__shared__"):
        if left in _blank(text):
            line = _blank(text)[: _blank(text).index(left)].count("\n") + 1
            raise NotUnderstoodError(f"{name}:{line}: this use of {left} is not understood")
    return f'#line 1 "{name}"\n{text}'


def _blank(text: str) -> str:
    """Comments and strings as spaces: what is found in it is code, at the same place."""
    return _SKIPPED.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def _closing(code: str, start: int, opening: str = "(", closing: str = ")") -> int:
    """Where what opens at `start` closes."""
    depth = 0
    for at in range(start, len(code)):
        depth += (code[at] == opening) - (code[at] == closing)
        if depth == 0:
            return at
    raise NotUnderstoodError(f"what line {code[:start].count(chr(10)) + 1} opens does not close")


def _opening(code: str, end: int) -> int:
    """Where the template arguments that close at `end` open."""
    depth = 0
    for at in range(end, -1, -1):
        depth += (code[at] == ">") - (code[at] == "<")
        if depth == 0:
            return at
    raise NotUnderstoodError("template arguments that do not open")


def _launches(text: str) -> str:
    """kernel<<<configuration>>>(arguments) as a call of emulated::launch."""
    while (at := (code := _blank(text)).find("<<<")) >= 0:
        before = code[:at].rstrip()
        begin = _opening(code, len(before) - 1) if before.endswith(">") else len(before)
        kernel = _KERNEL.search(code, 0, begin)
        middle, end = code.find(">>>", at), code.find("(", at)
        if not kernel or middle < 0:
            raise NotUnderstoodError(f"the launch of line {code[:at].count(chr(10)) + 1} is not understood")
        end = _closing(code, code.index("(", middle))
        name = text[kernel.start() : at].strip()
        configuration, arguments = text[at + 3 : middle], text[code.index("(", middle) + 1 : end]
        call = f'emulated::launch("{name}", emulated::configured({configuration}), [=](auto... a) {{ {name}(a...); }}'
        text = text[: kernel.start()] + call + (f", {arguments})" if arguments.strip() else ")") + text[end + 1 :]
    return text


def _bounds(text: str) -> str:
    """Kernels that say how many threads a block may have check it."""
    for match in reversed(list(_BOUNDED.finditer(_blank(text)))):
        body = _blank(text).find("{", _closing(_blank(text), match.end() - 1))
        most = match.group(1).split(",")[0]
        text = f"{text[: body + 1]} emulated::check_launch_bounds({most});{text[body + 1 :]}"
    return text


def _shared(text: str) -> str:
    """Declarations of shared memory as references to what the machine holds for the block."""

    def rewritten(match: re.Match[str]) -> str:
        of, name, size = match["type"], match["name"], match["size"].strip()
        if match["extern"]:
            return f"{of}* const {name} = static_cast<{of}*>(emulated::shared_memory(nullptr, 0));"
        site = f"static const char {name}_site = 0; using {name}_type = {of}{size};"
        memory = f"emulated::shared_memory(&{name}_site, sizeof({name}_type))"
        return f"{site} auto& {name} = *static_cast<{name}_type*>({memory});"

    for match in reversed(list(_SHARED.finditer(_blank(text)))):
        text = text[: match.start()] + rewritten(match) + text[match.end() :]
    return text
