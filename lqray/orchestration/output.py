"""Standard output and error that outlive their reader: a closed pipe, a full disk or a terminal that is gone ends the
printing, not what is printed about. What the terminal's encoding does not have is written with characters that it has.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO

_PLAIN = {"±": "+-", "×": "x", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "…": "...", "─": "-", "━": "-", "│": "|"}
_lost: list[OSError | ValueError] = []


def outlive_readers(needed: bool = False) -> None:
    """From now on drop what cannot be written to standard output or error any more; what their encoding cannot say is
    said plainly.

    needed: the output is all that the command is for. Once standard output cannot be written, the process ends with
    SystemExit(1): without a word where nobody reads on, as is usual behind `| head`, else with the reason.
    """
    _lost.clear()
    codecs.register_error("lqray.plain", _plain)
    _open_closed()
    sys.stdout, sys.stderr = _lasting(sys.stdout, needed), _lasting(sys.stderr, False)
    if _lost:
        _say_lost(_lost[0], needed)


def was_lost() -> bool:
    """Whether something could not be written to standard output, and not because nobody read on. Writes what is not
    written yet."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    return bool(_lost)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: near enough in ASCII, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(one, "?") for one in error.object[error.start : error.end]), error.end


def _open_closed() -> None:
    """Give the standard descriptors that are closed (`lqray run ... >&-`) to the null device: the next file that is
    opened would take their numbers, and what is printed would go there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError as error:
            os.open(os.devnull, os.O_RDWR)
            if number == 1:
                _lost.append(error)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _lasting(stream: TextIO, needed: bool) -> TextIO:
    """A stream like that one; the same where it is not a file of the system's, as in tests."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if not isinstance(raw, io.FileIO):
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(raw, needed, stream)),  # type: ignore[type-var]
        encoding=stream.encoding,
        errors="lqray.plain" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _LastingFile(io.RawIOBase):
    """A file that takes everything; see `outlive_readers`."""

    def __init__(self, file: io.FileIO, needed: bool, owner: TextIO) -> None:
        self._file, self._needed = file, needed
        self._owner = owner  # whose end would close the file
        self._lost = False
        self._output = file.fileno() == 1

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()

    @property
    def name(self) -> str:
        return str(self._file.name)

    @property
    def mode(self) -> str:
        return "wb"

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """Raises SystemExit where the output is needed and cannot be written."""
        if self._lost:
            return len(data)
        try:
            while (written := self._file.write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self._file], [])
        except (OSError, ValueError) as error:
            self._lost = True
            if self._output and not isinstance(error, BrokenPipeError):
                _lost.append(error)
                _say_lost(error, self._needed)
            if self._needed:
                raise SystemExit(1) from None
            return len(data)
        return written


def _say_lost(error: Exception, needed: bool) -> None:
    ends = "" if needed else "; what this command does goes on"
    sys.stderr.write(f"Error: standard output cannot be written: {error}{ends}\n")
