"""Tokenizers of packages: their tokens, the bytes that these stand for, and what is said where they cannot be had."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from lqray.experiment.schema import data_options
from lqray.training import data_files, tokenizing
from lqray.training.files import CorruptDataError, MissingDataError
from lqray.training.known_data import known_data
from lqray.training.tokenizing import BYTE_CHARACTERS, Described, Tiktoken, read_tokenizer
from tests.testing.texts import ids, load, options_of, write, write_tokens

WORDS = "Grüße an alle,  die 漢字 lesen: naïve 😀 words,\n\n\tand words of words; def f(x):\n    return x + 1\n"
LATIN = [chr(number) for number in (*range(33, 127), *range(161, 173), *range(174, 256))]
"""Bytes that stand for themselves."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data_files, "_known", {})


def described(**changes) -> dict:
    """A byte-level BPE as its file has it: a token for every byte, "th" and " the", and one between texts."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [*sorted(BYTE_CHARACTERS), "th", "Ġth", "Ġthe"]
    document = {
        "version": "1.0",
        "added_tokens": [{"id": 259, "content": "<|end|>", "special": True, **flags}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": ["t h", "Ġ th", "Ġth e"],
        },
    }
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (document[section] if section else document)[name] = value
    return document


def tokenizer(**changes) -> Described:
    return Described(json.dumps(described(**changes)), "here")


def test_byte_characters_are_256_and_printable_ones_stand_for_themselves():
    assert len(BYTE_CHARACTERS) == 256
    assert set(LATIN) < BYTE_CHARACTERS
    assert max(map(ord, BYTE_CHARACTERS)) == 256 + 67
    assert "Ġ" in BYTE_CHARACTERS  # the space, 33rd of those that do not


def test_bytes_of_tokens_are_their_characters():
    one = tokenizer()
    assert one.vocabulary == 260
    lengths = one.token_bytes(separators=False)
    assert lengths[:256].tolist() == [1] * 256
    assert lengths[256:].tolist() == [2, 3, 4, len("<|end|>")]
    assert one.token_bytes(separators=True)[-1] == 0
    assert lengths.dtype == np.int64


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer__add_prefix_space": True},
        {"model__end_of_word_suffix": "</w>"},
        {"model__vocab": {"a": 0, "b": 1}},
        {"added_tokens": [{"id": 259, "content": "<|end|>", "lstrip": True}]},
    ],
)
def test_bytes_are_unknown_where_a_token_does_not_tell(changes):
    assert tokenizer(**changes).token_bytes(separators=False) is None


def test_every_byte_of_a_text_is_counted_once(tmp_path):
    pytest.importorskip("tokenizers")
    text = WORDS * 50 + "<|end|> the end, this then\r\n"
    write(tmp_path / "tokenizer.json", json.dumps(described()))
    data = load(write(tmp_path / "a.txt", text), tokenizer=str(tmp_path / "tokenizer.json"), context=16)
    tokens = np.concatenate([ids(data.train), ids(data.test)])
    assert int(data.token_bytes[torch.from_numpy(tokens.astype(np.int64))].sum()) == len(text.encode())
    assert len(tokens) < len(text.encode())
    assert data.classes == 260
    assert {257, 258, 259} & set(tokens.tolist()) == {257, 258, 259}
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.decode(tokens.tolist(), skip_special_tokens=False) == text


def test_a_tokenizer_that_is_trained_counts_as_well(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(
        [WORDS, "the words of the others " * 20], vocab_size=400, min_frequency=1, show_progress=False
    )
    made.enable_truncation(5)
    made.save(str(tmp_path / "tokenizer.json"))
    data = load(write(tmp_path / "a.txt", WORDS * 9), tokenizer=str(tmp_path / "tokenizer.json"), context=4)
    tokens = np.concatenate([ids(data.train), ids(data.test)]).astype(np.int64)
    assert int(data.token_bytes.numpy()[tokens].sum()) == 9 * len(WORDS.encode())
    assert data.classes == made.get_vocab_size()
    assert max(data.token_bytes.tolist()) > 4


def test_another_tokenizer_makes_other_tokens_of_the_same_text(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.txt", "the other " * 30)
    one, other = (write(tmp_path / f"{name}.json", json.dumps(described())) for name in ("one", "other"))
    first = load(path, tokenizer=str(one), context=4)
    write(one, json.dumps(described(model__merges=["t h"])))
    second = load(path, tokenizer=str(one), context=4)
    assert second.train_examples > first.train_examples
    assert load(path, tokenizer=str(other), context=4).train_examples == first.train_examples


def test_what_is_no_utf8_is_told(tmp_path):
    pytest.importorskip("tokenizers")
    tokens = write(tmp_path / "tokenizer.json", json.dumps(described()))
    path = write(tmp_path / "a.txt", b"caf\xe9 " * 100)
    with pytest.raises(CorruptDataError, match=r"a.txt is no UTF-8 .*`tokenizer: bytes`"):
        load(path, tokenizer=str(tokens), context=4)
    assert load(path, context=4).classes == 256


def test_a_missing_package_is_told_and_not_needed_for_tokens(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = write(tmp_path / "tokenizer.json", json.dumps(described()))
    with pytest.raises(
        MissingDataError, match=r"no package tokenizers here; pip install tokenizers \(or lqray\[text\]\)"
    ):
        load(write(tmp_path / "a.txt", "text " * 100), tokenizer=str(path), context=4)
    shard = write_tokens(tmp_path / "all.bin", range(260))
    data = load(shard, tokenizer=str(path), context=4)
    assert (data.classes, int(data.token_bytes[258]), int(data.token_bytes[259])) == (260, 4, 0)
    assert known_data(options_of(shard, tokenizer=str(path))).classes == 260


@pytest.mark.parametrize("content", ["no json", "[]", '{"model": {}}', '{"model": {"vocab": {}}}', b"\xff"])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    path = write(tmp_path / "tokenizer.json", content)
    with pytest.raises(CorruptDataError, match=r"tokenizer.json: found .*allowed: a file tokenizer.json"):
        read_tokenizer(path)
    assert known_data(options_of(None, tokenizer=str(path))) is None


def test_a_file_that_the_package_does_not_take(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "tokenizer.json", '{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(CorruptDataError, match=r"tokenizer.json: found no tokenizer \(Exception: .*allowed"):
        load(write(tmp_path / "a.txt", "a" * 100), tokenizer=str(path), context=4)


def absent(monkeypatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_gpt2_without_its_packages(tmp_path, monkeypatch):
    absent(monkeypatch, "tokenizers", "tiktoken")
    with pytest.raises(MissingDataError) as raised:
        load(write(tmp_path / "a.txt", "text " * 100), tokenizer="gpt2", context=4)
    for said in ("gpt2 cannot be had", "tokenizers: ModuleNotFoundError", "tiktoken: ModuleNotFoundError",
                 "pip install tokenizers", "tokenizer: PATH/tokenizer.json"):  # fmt: skip
        assert said in str(raised.value)
    data = load(write_tokens(tmp_path / "all.bin", range(50_000, 50_257)), tokenizer="gpt2", context=4)
    assert (data.classes, data.token_bytes) == (50_257, None)


class _FromHub:
    """Stands for tokenizers.Tokenizer, whose from_pretrained asks the network."""

    @staticmethod
    def from_pretrained(name):
        if name != "gpt2":
            raise RuntimeError(name)
        raise OSError("We couldn't connect\nto the hub")


def test_gpt2_where_its_vocabulary_cannot_be_fetched(monkeypatch):
    absent(monkeypatch, "tiktoken")
    package = types.ModuleType("tokenizers")
    package.Tokenizer = _FromHub
    monkeypatch.setitem(sys.modules, "tokenizers", package)
    with pytest.raises(MissingDataError, match="tokenizers: OSError: We couldn't connect to the hub\n"):
        tokenizing.tokenizer_of(data_options({"name": "text", "tokenizer": "gpt2"}))


class _Encoding:
    """Stands for tiktoken.Encoding: two bytes are a token, where they are "th"."""

    name, n_vocab, _special_tokens = "gpt2", 258, types.MappingProxyType({"<|endoftext|>": 257})

    def encode_batch(self, texts, allowed_special):
        assert allowed_special == "all"
        return [[256 if pair else ord(one) for pair, one in _pairs(text)] for text in texts]

    def decode_single_token_bytes(self, number):
        return b"th" if number == 256 else b"<|endoftext|>" if number == 257 else bytes([number])


def _pairs(text):
    at = 0
    while at < len(text):
        pair = text[at : at + 2] == "th"
        yield pair, text[at]
        at += 2 if pair else 1


def test_gpt2_by_tiktoken(tmp_path, monkeypatch):
    absent(monkeypatch, "tokenizers")
    package = types.ModuleType("tiktoken")
    package.get_encoding = {"gpt2": _Encoding()}.__getitem__
    monkeypatch.setitem(sys.modules, "tiktoken", package)
    text = "the other three " * 20
    data = load(write(tmp_path / "a.txt", text), tokenizer="gpt2", context=4)
    tokens = np.concatenate([ids(data.train), ids(data.test)]).astype(np.int64)
    assert int(data.token_bytes.numpy()[tokens].sum()) == len(text)
    assert np.count_nonzero(tokens == 256) == 60
    assert Tiktoken(_Encoding()).token_bytes(separators=True)[-2:].tolist() == [2, 0]
