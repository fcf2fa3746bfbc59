"""Files of tokens: the forms that they come in, and what is said of those that are not whole."""

import numpy as np
import pytest
import torch

from lqray.experiment.errors import UnfitTrialError
from lqray.training import data_files
from lqray.training.data import text as module
from lqray.training.files import CorruptDataError
from lqray.training.known_data import known_data
from lqray.training.tokens import read_shard
from tests.testing.texts import ids, is_mapped, load, options_of, write, write_tokens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data_files, "_known", {})
    return tmp_path / "cache" / "lqray" / module._FOLDER


@pytest.mark.parametrize("magic", [None, 20240520, 20240801])
def test_files_of_tokens_are_mapped_and_val_is_the_test_set(tmp_path, cache, magic):
    version = 7 if magic == 20240801 else 1
    for name, start in (("fineweb_train_000001", 0), ("fineweb_train_000002", 100), ("fineweb_val_000000", 200)):
        write_tokens(tmp_path / f"{name}.bin", range(start, start + 50), magic, version)
    write(tmp_path / "readme.md")
    data = load(tmp_path, tokenizer="gpt2", context=7)
    assert not cache.exists()
    assert is_mapped(read_shard(tmp_path / "fineweb_val_000000.bin"))
    assert (data.train_examples, data.test_examples, data.classes) == (14, 7, 50_257)
    inputs, targets = data.train_batch(torch.tensor([0, 7, 6, 13]), 0)
    assert inputs[:, 0].tolist() == [0, 100, 42, 142]  # no window reaches into another file
    assert torch.equal(targets, inputs + 1)
    (batch,) = data.evaluation("test", 0, 1, 100)
    assert batch[0].flatten().tolist() == list(range(200, 249))
    assert known_data(options_of(tmp_path, tokenizer="gpt2", context=7)).classes == 50_257


def test_one_file_of_tokens_is_split(tmp_path):
    data = load(write_tokens(tmp_path / "all.bin", range(100)), validation=0.25, context=5)
    assert ids(data.train).tolist() == list(range(75))
    assert ids(data.test).tolist() == list(range(75, 100))
    assert data.token_bytes.tolist() == [1] * 256


def test_tokens_of_a_tokenizer_that_is_not_at_hand(tmp_path):
    path = write_tokens(tmp_path / "all.bin", [*range(60), 64] * 3)
    with pytest.raises(CorruptDataError, match="found the token 64 in .*allowed: below 64.*data.vocabulary"):
        load(path, vocabulary=64, context=5)
    data = load(path, vocabulary=65, context=5)
    assert (data.classes, data.token_bytes) == (65, None)
    assert known_data(options_of(path, vocabulary=65)).classes == 65
    with pytest.raises(UnfitTrialError, match="data.vocabulary: found 65 with text"):
        load(write(tmp_path / "a.txt"), vocabulary=65)


def test_a_token_beyond_the_vocabulary_is_told_wherever_it_stands(tmp_path):
    tokens = np.zeros(400_000, np.uint16)
    tokens[300_000] = 256
    data = load(write_tokens(tmp_path / "all.bin", tokens), context=8)
    data.train_batch(torch.tensor([0]), 0)
    with pytest.raises(CorruptDataError, match="found the token 256 .*below 256, the vocabulary; name the tokenizer"):
        data.train_batch(torch.tensor([300_000 // 8]), 0)
    with pytest.raises(CorruptDataError, match="found the token 256"):
        list(data.evaluation("train", 0, 1, 1000))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"count": 101}, "found 1,224 bytes; its header says 101 tokens, which are 1,226 bytes"),
        ({"count": 99}, "its header says 99 tokens"),
        ({"count": -1}, "its header says -1 tokens"),
        ({"version": 2}, "found version 2 of the form 20240520; allowed: version 1"),
    ],
)
def test_files_of_tokens_that_are_not_whole(tmp_path, content, told):
    path = write_tokens(tmp_path / "all.bin", range(100), 20240520, **content)
    with pytest.raises(CorruptDataError, match=told):
        load(path, context=4)
    write(path, b"123")
    with pytest.raises(CorruptDataError, match="found 3 bytes; allowed: a multiple of 2"):
        load(path, context=4)
    write(path, b"")
    with pytest.raises(CorruptDataError, match="found 0 tokens for the training set .*at least 5"):
        load(path, context=4)
