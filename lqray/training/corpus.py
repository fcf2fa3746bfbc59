"""Which files a text, or a stream of tokens, is read from. Imports no torch."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lqray.experiment.options.data import TextOptions
from lqray.training.files import Folder, at
from lqray.training.tokens import read_shard

TEXT = (".txt", ".md", ".rst", ".html", ".py")
"""Endings of files of text in a folder; each may have .gz behind it. A file named by itself may end in anything."""
TOKENS = ".bin"
_ADVICE = "name a text file, or a folder of them, with data.root; null: Python's own standard library"
_TESTS = {"test", "tests", "idle_test"}
_NOT_OF_PYTHON = _TESTS | {
    "idlelib",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "lib-dynload",
    "site-packages",
    "dist-packages",
}
"""Folders of the standard library that are left out: tests, programs, what is installed beside it."""


@dataclass(frozen=True)
class Corpus:
    """The files, by their names below `place` without .gz. test: of tokens that are split into files already; {} where
    the last part of `train` is the test set. tokens: whether the files are of tokens, and not of text."""

    place: Folder
    train: dict[str, Path]
    test: dict[str, Path]
    tokens: bool


def corpus_files(options: TextOptions) -> dict[str, Path]:
    """All files that decide what the data are, by name. Raises MissingDataError."""
    corpus = find_corpus(options)
    files = {**corpus.train, **corpus.test}
    if options.tokenizer.endswith(".json") and options.vocabulary is None:
        files["tokenizer"] = tokenizer_file(options)
    return files


def tokenizer_file(options: TextOptions) -> Path:
    """Where a tokenizer that is named by its path lies. Raises MissingDataError."""
    place = at(options.name, options.tokenizer, "data.tokenizer")
    if not place.path.is_file():
        raise place.missing(options.name, "a file tokenizer.json", "name one with data.tokenizer, or bytes")
    return place.path


def find_corpus(options: TextOptions) -> Corpus:
    """Raises MissingDataError where there is nothing, no text, or tokens for training alone."""
    if options.root is None:
        place = Folder(Path(sysconfig.get_path("stdlib")), "Python's standard library; data.root is null")
        return Corpus(place, _named(place.path, _of_python(place.path)), {}, tokens=False)
    place = at(options.name, options.root, "data.root")
    if place.path.is_file():
        return Corpus(place, {place.path.name: place.path}, {}, tokens=place.path.suffix == TOKENS)
    if not place.path.is_dir():
        raise place.missing(options.name, "a file or a folder", _ADVICE)
    return _shards(options, place) or _texts(options, place)


def _shards(options: TextOptions, place: Folder) -> Corpus | None:
    found = sorted(path for path in place.path.glob(f"*{TOKENS}") if path.is_file())
    test = [path for path in found if "val" in path.stem and "train" not in path.stem]
    train = [path for path in found if "train" in path.stem]
    if not train and not test:
        return None
    if not train or not test:
        wanted = f"*train*{TOKENS}" if test else f"*val*{TOKENS}"
        raise place.missing(options.name, wanted, f"put both there, or name one file *{TOKENS} to be split")
    return Corpus(place, _named(place.path, train), _named(place.path, test), tokens=True)


def _texts(options: TextOptions, place: Folder) -> Corpus:
    endings = tuple(f"{one}{packed}" for one in TEXT for packed in ("", ".gz"))
    visible = _below(place.path, lambda folder: folder.startswith("."))
    found = _named(
        place.path, (path for path in visible if path.name.endswith(endings) and not path.name.startswith("."))
    )
    if not found:
        raise place.missing(options.name, f"files *{', *'.join(TEXT)}, or these with .gz, or *train*{TOKENS}", _ADVICE)
    return Corpus(place, found, {}, tokens=False)


def _below(place: Path, left_out: Callable[[str], bool]) -> Iterator[Path]:
    """Files below a folder, but for those below folders whose names are left out."""
    for above, folders, files in os.walk(place):
        folders[:] = [one for one in folders if not left_out(one)]
        yield from (path for path in (Path(above, one) for one in files) if path.is_file())


def _of_python(library: Path) -> Iterator[Path]:
    """Its modules, but for those that say how and where this Python was built."""
    for path in _below(library, lambda folder: folder in _NOT_OF_PYTHON or folder.startswith("config-")):
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
            yield path


def _named(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """In the order of their names; where a file is there packed and unpacked, that unpacked."""
    named: dict[str, Path] = {}
    for path in sorted(paths, reverse=True):
        named[path.relative_to(folder).as_posix().removesuffix(".gz")] = path
    return dict(sorted(named.items()))


def about_how_many(options: TextOptions) -> int:
    """Training examples, as far as sizes of files tell. Raises MissingDataError, CorruptDataError or OSError."""
    corpus = find_corpus(options)
    if corpus.tokens:
        tokens = sum(len(read_shard(path)) for path in corpus.train.values())
    else:
        size = sum(map(_size_of_text, corpus.train.values()))
        tokens = size if options.tokenizer == "bytes" else size // _BYTES_OF_A_TOKEN
    return int(tokens * (1 if corpus.test else 1 - options.validation)) // options.context


def _size_of_text(path: Path) -> int:
    """In bytes; of a packed one its last four say so."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


_BYTES_OF_A_TOKEN = 4
