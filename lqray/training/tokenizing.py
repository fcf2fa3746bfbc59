"""Tokenizers: what makes tokens of text, how many there are, and how many bytes each stands for. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lqray.experiment.options.data import TextOptions
from lqray.training.corpus import tokenizer_file
from lqray.training.files import CorruptDataError, MissingDataError

GPT2_VOCABULARY = 50_257
_INSTALL = "pip install tokenizers (or lqray[text])"


class Tokenizer(Protocol):
    """key: tells it from every other one. vocabulary: ids are below it."""

    @property
    def key(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...

    def encode(self, pieces: Sequence[bytes]) -> list[NDArray[Any]]:
        """The ids of each piece of text. Raises UnicodeDecodeError for what is not UTF-8, MissingDataError where a
        package is missing."""

    def token_bytes(self, separators: bool) -> NDArray[np.int64] | None:
        """int64 (vocabulary,): bytes that each token stands for; None where a token of its own does not tell.
        separators: whether special tokens stand between texts, and for none of their bytes."""


def vocabulary_of(options: TextOptions) -> int:
    """Ids that the data may have; takes no package. Raises MissingDataError, CorruptDataError or OSError."""
    if options.vocabulary is not None:
        return options.vocabulary
    return GPT2_VOCABULARY if options.tokenizer == "gpt2" else tokenizer_of(options).vocabulary


def tokenizer_of(options: TextOptions) -> Tokenizer:
    """The tokenizer that a trial names. Raises MissingDataError or CorruptDataError."""
    if options.tokenizer == "bytes":
        return Bytes()
    if options.tokenizer == "gpt2":
        return _gpt2()
    return read_tokenizer(tokenizer_file(options))


class Bytes:
    """Every byte is a token, whatever the text's encoding."""

    key = "bytes"
    vocabulary = 256

    def encode(self, pieces: Sequence[bytes]) -> list[NDArray[Any]]:
        """uint8 (n,) each."""
        return [np.frombuffer(piece, np.uint8) for piece in pieces]

    def token_bytes(self, separators: bool) -> NDArray[np.int64]:
        """Ones."""
        return np.ones(self.vocabulary, np.int64)


class Described:
    """A tokenizer of the tokenizers package, by the JSON that describes it whole."""

    def __init__(self, text: str, origin: str) -> None:
        """Raises CorruptDataError, which names `origin`, for what describes none."""
        self.text, self.origin = text, origin
        try:
            self.document = json.loads(text)
            self.added: list[dict[str, Any]] = self.document.get("added_tokens") or []
            vocab = self.document["model"]["vocab"]
            self.ids = dict(vocab) if isinstance(vocab, dict) else {one[0]: at for at, one in enumerate(vocab)}
            self.vocabulary = 1 + max([*self.ids.values(), *(int(one["id"]) for one in self.added)])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise self._wrong(error) from error

    def _wrong(self, error: Exception) -> CorruptDataError:
        return CorruptDataError(
            f"{self.origin}: found no tokenizer ({type(error).__name__}: {error}); allowed: a file tokenizer.json, as "
            "Tokenizer.save of the package tokenizers writes it"
        )

    @cached_property
    def key(self) -> str:
        """Of what it is described by."""
        return f"json {hashlib.sha256(self.text.encode()).hexdigest()}"

    def encode(self, pieces: Sequence[bytes]) -> list[NDArray[Any]]:
        """uint32 (n,) each; no tokens are put before or behind a piece."""
        texts = [piece.decode() for piece in pieces]
        encodings = self._made.encode_batch(texts, add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in encodings]

    @cached_property
    def _made(self) -> Any:
        try:
            from tokenizers import Tokenizer as Made
        except ImportError as error:
            raise MissingDataError(
                f"data.tokenizer: found a tokenizer's file, and no package tokenizers here; {_INSTALL}, or `tokenizer: "
                "bytes`"
            ) from error
        try:
            made = Made.from_str(self.text)
        except Exception as error:  # which is all that it raises
            raise self._wrong(error) from error
        made.no_truncation()
        made.no_padding()
        return made

    def token_bytes(self, separators: bool) -> NDArray[np.int64] | None:
        """Of byte-level BPE as GPT-2 has it, one character of a token for each byte. None for tokenizers that change a
        text before they cut it, or of which a token's bytes depend on its place."""
        if not self._by_bytes or any(one.get("lstrip") or one.get("rstrip") for one in self.added):
            return None
        lengths = np.zeros(self.vocabulary, np.int64)
        for token, number in self.ids.items():
            lengths[number] = len(token)
        for one in self.added:
            inserted = separators and one.get("special")
            lengths[int(one["id"])] = 0 if inserted else len(one["content"].encode())
        return lengths

    @cached_property
    def _by_bytes(self) -> bool:
        """Whether every byte of a text becomes one character of one token, in order."""
        model, given = self.document["model"], self.document.get("pre_tokenizer") or {}
        steps = given.get("pretokenizers", [given])
        byte_level = [one for one in steps if one.get("type") == "ByteLevel"]
        changes = (
            self.document.get("normalizer"),
            model.get("continuing_subword_prefix"),
            model.get("end_of_word_suffix"),
            *(one.get("add_prefix_space") or one.get("behavior") == "Removed" for one in steps),
        )
        added = {one["content"] for one in self.added}
        characters = set("".join(token for token in self.ids if token not in added))
        return len(byte_level) == 1 and not any(changes) and characters == BYTE_CHARACTERS <= self.ids.keys()


def _byte_characters() -> frozenset[str]:
    """The 256 characters that stand for bytes in GPT-2's vocabulary (Radford et al. 2019): printable ones of Latin-1
    for themselves, others for the rest from U+0100 on."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    return frozenset(map(chr, [*own, *range(256, 256 + 256 - len(own))]))


BYTE_CHARACTERS = _byte_characters()


class Tiktoken:
    """An encoding of the tiktoken package."""

    def __init__(self, encoding: Any) -> None:
        self.encoding = encoding
        self.key = f"tiktoken {encoding.name}"
        self.vocabulary = int(encoding.n_vocab)

    def encode(self, pieces: Sequence[bytes]) -> list[NDArray[Any]]:
        """uint32 (n,) each."""
        texts = [piece.decode() for piece in pieces]
        return [np.array(one, np.uint32) for one in self.encoding.encode_batch(texts, allowed_special="all")]

    def token_bytes(self, separators: bool) -> NDArray[np.int64]:
        """As the encoding has them."""
        special = set(self.encoding._special_tokens.values()) if separators else set()
        lengths = np.zeros(self.vocabulary, np.int64)
        for number in range(self.vocabulary):
            if number not in special:
                lengths[number] = len(self.encoding.decode_single_token_bytes(number))
        return lengths


def read_tokenizer(path: Path) -> Described:
    """A file tokenizer.json. Raises CorruptDataError; OSError."""
    try:
        return Described(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{path}: found {error}; allowed: a file tokenizer.json, in UTF-8") from error


def _gpt2() -> Tokenizer:
    """GPT-2's, by whichever package there is: both fetch its vocabulary, and keep it. Raises MissingDataError."""
    tried = []
    for one in (_by_tokenizers, _by_tiktoken):
        try:
            return one()
        except Exception as error:  # their clients raise many kinds
            tried.append(f"{one.__name__.removeprefix('_by_')}: {type(error).__name__}: {' '.join(str(error).split())}")
    raise MissingDataError(
        "data.tokenizer: gpt2 cannot be had here\n"
        + "".join(f"  found: {found:.300}\n" for found in tried)
        + f"  hint:  {_INSTALL}, and run once where its vocabulary can be fetched; or copy GPT-2's file tokenizer.json "
        "here and write its path, `tokenizer: PATH/tokenizer.json`; or `tokenizer: bytes`"
    )


def gpt2_is_here() -> bool:
    """Whether GPT-2's vocabulary lies in the cache of the package tokenizers; what tiktoken has cannot be told. Raises
    MissingDataError where there is neither package, which no network mends."""
    packages = [one for one in ("tokenizers", "tiktoken") if find_spec(one)]
    if not packages:
        raise MissingDataError(f"data.tokenizer: gpt2 takes a package that is not here; {_INSTALL}")
    if "tokenizers" not in packages:
        return False
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # a release of tokenizers that does without
        return False
    return isinstance(try_to_load_from_cache("gpt2", "tokenizer.json"), str)


def _by_tokenizers() -> Tokenizer:
    from tokenizers import Tokenizer as Made

    return Described(Made.from_pretrained("gpt2").to_str(), "gpt2")


def _by_tiktoken() -> Tokenizer:
    import tiktoken

    return Tiktoken(tiktoken.get_encoding("gpt2"))
