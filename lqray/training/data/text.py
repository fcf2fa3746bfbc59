"""Language modelling: windows of a text, of whose tokens each is to be predicted from those before it.

Text is tokenized once and kept in this user's cache, under a digest of the tokenizer and of what is in the files; files
of tokens are mapped into memory as they are.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.options.data import TextOptions
from lqray.experiment.user_cache import kept
from lqray.training.corpus import Corpus, about_how_many, find_corpus
from lqray.training.data_files import contents
from lqray.training.dataset import Batch, Split
from lqray.training.files import CorruptDataError, MissingDataError, locked
from lqray.training.tokenizing import GPT2_VOCABULARY, Bytes, Tokenizer, gpt2_is_here, tokenizer_of
from lqray.training.tokens import Ids, Windows, mapped, read_shard

_FOLDER = "tokens-1"
_PIECE_BYTES = 2**20
_PIECES = 16
"""That are encoded at a time, side by side where the tokenizer has threads."""
_CHECKED_TOKENS = 2**16
"""Of a split, that are looked at before training begins; all others are as they come."""


def load(options: TextOptions) -> Text:
    """Raises MissingDataError or CorruptDataError; UnfitTrialError for `vocabulary` with text."""
    corpus = find_corpus(options)
    tokens = _of_shards(options, corpus) if corpus.tokens else _of_text(options, corpus)
    train, test = tokens.train, tokens.test
    if not corpus.test:
        cut = round(len(train[0]) * (1 - options.validation))
        train, test = (train[0][:cut],), (train[0][cut:],)
    data = Text(
        Windows(train, options.context),
        Windows(test, options.context),
        tokens.vocabulary,
        None if tokens.bytes is None else torch.from_numpy(tokens.bytes),
        options.evaluation_examples,
        str(corpus.place.path),
        torch.device("cpu"),
    )
    data.check()
    return data


@dataclass(frozen=True)
class _Tokens:
    """As they were found: test is () where `train`, a single stream, is to be split."""

    train: tuple[Ids, ...]
    test: tuple[Ids, ...]
    vocabulary: int
    bytes: NDArray[np.int64] | None


def _of_shards(options: TextOptions, corpus: Corpus) -> _Tokens:
    train, test = (tuple(read_shard(path) for path in part.values()) for part in (corpus.train, corpus.test))
    if options.vocabulary is not None:
        return _Tokens(train, test, options.vocabulary, None)
    try:
        tokenizer = tokenizer_of(options)
    except MissingDataError:
        if options.tokenizer != "gpt2":
            raise
        return _Tokens(train, test, GPT2_VOCABULARY, None)
    return _Tokens(train, test, tokenizer.vocabulary, tokenizer.token_bytes(separators=True))


def _of_text(options: TextOptions, corpus: Corpus) -> _Tokens:
    _check_no_vocabulary(options, corpus)
    tokenizer = tokenizer_of(options)
    return _Tokens((_tokenized(corpus, tokenizer),), (), tokenizer.vocabulary, tokenizer.token_bytes(separators=False))


def _check_no_vocabulary(options: TextOptions, corpus: Corpus) -> None:
    if options.vocabulary is not None:
        raise UnfitTrialError(
            f"data.vocabulary: found {options.vocabulary} with text, {corpus.place.path}; allowed: null, the "
            "tokenizer's; or files of tokens"
        )


def look(options: TextOptions, fetch: bool) -> tuple[str, bool]:
    """(about how many training examples there are, whether a vocabulary is still to be fetched), without making tokens
    of all text. fetch: GPT-2's vocabulary, where it is needed and not there. Raises what `load` raises."""
    corpus, later = find_corpus(options), False
    if corpus.tokens:
        known = {"vocabulary": GPT2_VOCABULARY} if options.tokenizer == "gpt2" and options.vocabulary is None else {}
        load(options.model_copy(update=known))
    else:
        _check_no_vocabulary(options, corpus)
        later = options.tokenizer == "gpt2" and not fetch and not gpt2_is_here()
        known_here = options.tokenizer != "gpt2" or fetch
        _look_at_text(corpus, tokenizer_of(options) if known_here else None)
    examples = about_how_many(options)
    of_the_test = about_how_many(options.model_copy(update={"validation": 1 - options.validation}))
    if min(examples, of_the_test) < 2 and options.tokenizer == "bytes":
        load(options)  # which says, where it is too short, by how much
    return f"{'' if corpus.tokens else 'about '}{examples:,} training examples", later


def _look_at_text(corpus: Corpus, tokenizer: Tokenizer | None) -> None:
    """Read every file to its end, and, unless its tokens are made already or any bytes will do, as UTF-8."""
    digests = _digests(corpus)
    if isinstance(tokenizer, Bytes):
        return
    if tokenizer is not None:
        tokenizer.encode([b"a piece of text"])  # which takes the package
        file = _kept(corpus, tokenizer, digests)
        if file is not None and file.is_file():
            return
    for _ in _encoded(corpus, _Decoded(), "<u2"):
        pass


class _Decoded(Bytes):
    """Sees whether text is UTF-8, and makes nothing of it."""

    def encode(self, pieces: Sequence[bytes]) -> list[NDArray[Any]]:
        for piece in pieces:
            piece.decode()
        return []


def _digests(corpus: Corpus) -> dict[str, str]:
    try:
        return contents(corpus.train)
    except (OSError, EOFError, zlib.error) as error:
        raise corpus.place.corrupt("text", error) from error


def _kind(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocabulary <= 2**16 else "<u4"


def _kept(corpus: Corpus, tokenizer: Tokenizer, digests: dict[str, str]) -> Path | None:
    """The file of the cache that has, or is to have, the tokens."""
    what = (tokenizer.key, _kind(tokenizer), [digests[name] for name in corpus.train])
    return kept(f"{_FOLDER}/{hashlib.sha256(repr(what).encode()).hexdigest()}.bin")


def _tokenized(corpus: Corpus, tokenizer: Tokenizer) -> Ids:
    """From the cache; into it, where it is not there yet; in memory where nothing can be kept."""
    kind, file = _kind(tokenizer), _kept(corpus, tokenizer, _digests(corpus))
    try:
        if file is not None:
            if not file.is_file():
                _keep(file, corpus, tokenizer, kind)
            return mapped(file, kind, 0)
    except MissingDataError:
        raise
    except OSError:  # a full disk, a home that cannot be written to
        pass
    return np.concatenate([np.empty(0, kind), *_encoded(corpus, tokenizer, kind)])


def _keep(file: Path, corpus: Corpus, tokenizer: Tokenizer, kind: str) -> None:
    """Of several processes one makes the file, whole or not at all; the others wait for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent):
        if file.is_file():
            return
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f"{file.stem[:12]}-", delete=False) as new:
            try:
                for ids in _encoded(corpus, tokenizer, kind):
                    new.write(ids.tobytes())
                new.flush()
                os.fsync(new.fileno())
                Path(new.name).replace(file)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise


def _encoded(corpus: Corpus, tokenizer: Tokenizer, kind: str) -> Iterator[Ids]:
    """File after file, each in pieces of about a MiB that end with a line."""
    for path in corpus.train.values():
        try:
            with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as stream:
                pieces = _pieces(stream)
                while some := list(islice(pieces, _PIECES)):
                    yield from (ids.astype(kind) for ids in tokenizer.encode(some))
        except UnicodeDecodeError as error:
            raise CorruptDataError(
                f"dataset text: {path} is no UTF-8 ({error.reason}); allowed: UTF-8, or `tokenizer: bytes`, which "
                "takes any file"
            ) from error
        except MissingDataError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            raise corpus.place.corrupt("text", error) from error


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(_PIECE_BYTES):
        yield piece + stream.readline()


@dataclass(frozen=True)
class Text:
    """See `lqray.training.dataset.Dataset`. Inputs are int64 (B, context), and targets likewise: the tokens that follow
    each. classes: the size of the vocabulary. token_bytes: int64 (classes,), the bytes of text that each token stands
    for; None where that is not known. evaluated: windows of a split that are evaluated, at most."""

    train: Windows
    test: Windows
    classes: int
    token_bytes: Tensor | None
    evaluated: int | None
    origin: str
    device: torch.device
    task: ClassVar[str] = "language_modelling"

    @property
    def shape(self) -> tuple[int]:
        """(context,)."""
        return (self.train.context,)

    @property
    def train_examples(self) -> int:
        """Windows of the training set."""
        return len(self.train)

    @property
    def test_examples(self) -> int:
        """Windows of the test set that are evaluated."""
        return len(self._evaluated(self.test))

    def check(self) -> None:
        """Raise CorruptDataError for a split without a window, and for ids beyond the vocabulary in first windows."""
        for split, windows in (("training", self.train), ("test", self.test)):
            found = sum(map(len, windows.streams))
            if not len(windows):
                raise CorruptDataError(
                    f"dataset text: found {found:,} tokens for the {split} set in {self.origin}; allowed: at least "
                    f"{windows.context + 1:,}, a window of data.context and the token that follows; take a longer "
                    "text, a shorter context, or another data.validation"
                )
            self._batch(windows, np.arange(min(len(windows), max(1, _CHECKED_TOKENS // windows.context))))

    def to(self, device: torch.device) -> Text:
        """The same, giving its batches on another device."""
        lengths = None if self.token_bytes is None else self.token_bytes.to(device)
        return replace(self, device=device, token_bytes=lengths)

    def train_batch(self, chosen: Tensor, seed: int) -> Batch:
        """See `lqray.training.dataset.Dataset.train_batch`. Nothing is random."""
        return self._batch(self.train, chosen.cpu().numpy())

    def feed(self, draws: Iterable[tuple[Tensor, int]]) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.feed`."""
        for chosen, seed in draws:
            yield self.train_batch(chosen, seed)

    def evaluation(self, split: Split, part: int, parts: int, batch_size: int) -> Iterator[Batch]:
        """See `lqray.training.dataset.Dataset.evaluation`."""
        windows = self.train if split == "train" else self.test
        own = self._evaluated(windows)[part::parts]
        for start in range(0, len(own), batch_size):
            yield self._batch(windows, own[start : start + batch_size])

    def _evaluated(self, windows: Windows) -> NDArray[np.int64]:
        count = min(len(windows), self.evaluated or len(windows))
        return np.arange(count, dtype=np.int64) * len(windows) // max(count, 1)

    def _batch(self, windows: Windows, chosen: NDArray[np.int64]) -> Batch:
        """Raises CorruptDataError for ids beyond the vocabulary."""
        ids = windows[chosen]
        if (largest := int(ids.max(initial=0))) >= self.classes:
            raise CorruptDataError(
                f"dataset text: found the token {largest:,} in {self.origin}; allowed: below {self.classes:,}, the "
                "vocabulary; name the tokenizer that made these tokens with data.tokenizer, or how many tokens it has "
                "with data.vocabulary"
            )
        there = torch.from_numpy(ids).to(self.device)
        return there[:, :-1].contiguous(), there[:, 1:].contiguous()
