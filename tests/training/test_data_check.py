"""What a launch and `lqray doctor FILE` see of data before a trial begins."""

import gzip
import sys

import pytest

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import data_options
from lqray.training import data_check, dataset, tokenizing
from lqray.training.data_check import from_files, look_at_data
from lqray.training.files import CorruptDataError, MissingDataError
from lqray.training.vision import torchvision
from tests.testing.dataset_files import WRITERS, write_idx, write_svhn


def options(name: str, **given):
    return data_options({"name": name, **given})


@pytest.mark.parametrize("name", WRITERS)
def test_data_that_are_whole_are_found_and_missing_ones_are_not(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = {"context": 8} if name == "text" else {}
    there = options(name, root=str(tmp_path / "here"), **given)
    with pytest.raises(MissingDataError, match=rf"dataset {name}: not found(?s:.)*hint"):
        look_at_data(there)
    (tmp_path / "here").mkdir()
    WRITERS[name](tmp_path / "here", monkeypatch)
    found = look_at_data(there)
    assert found.found.startswith(f"{name}: ")
    assert not found.later
    assert from_files(there)
    loaded = dataset.load_dataset(there)
    expected = "3 classes" if name == "imagenet" else f"{loaded.train_examples:,} training examples"
    assert expected in found.found


@pytest.mark.parametrize("name", ["digits", "gaussian_mixture", "linear"])
def test_data_without_files_are_always_there(name):
    assert "training examples" in look_at_data(options(name)).found
    assert not from_files(options(name))


def test_files_that_are_not_whole_are_found_out(tmp_path, monkeypatch):
    write_idx(tmp_path / "mnist", zipped=True)
    file = tmp_path / "mnist/train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorruptDataError, match="cannot be read"):
        look_at_data(options("mnist", root=str(tmp_path / "mnist")))
    (tmp_path / "svhn").mkdir()
    write_svhn(tmp_path / "svhn", monkeypatch)
    file = tmp_path / "svhn/train_32x32.mat"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CorruptDataError):
        look_at_data(options("svhn", root=str(tmp_path / "svhn")))
    monkeypatch.setattr(
        torchvision.datasets.SVHN,
        "split_list",
        {split: [*spec[:2], "0" * 32] for split, spec in torchvision.datasets.SVHN.split_list.items()},
    )
    with pytest.raises(CorruptDataError, match="checksum"):
        look_at_data(options("svhn", root=str(tmp_path / "svhn")))


@pytest.mark.parametrize("broken", ["classes", "empty"])
def test_folders_of_images_are_looked_at_without_listing_them(tmp_path, monkeypatch, broken):
    WRITERS["imagenet"](tmp_path, monkeypatch)
    (tmp_path / ("val/another" if broken == "classes" else "train/empty")).mkdir()
    with pytest.raises((CorruptDataError, MissingDataError), match=r"val.another|train.empty|not the same"):
        look_at_data(options("imagenet", root=str(tmp_path)))


def test_what_may_be_downloaded_is_left_to_the_first_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: write_idx(tmp_path / "new"))
    downloaded = options("mnist", root=str(tmp_path / "new"), download=True)
    found = look_at_data(downloaded)
    assert "the first trial downloads it" in found.later
    assert not (tmp_path / "new").exists()
    assert "60 training examples" in look_at_data(downloaded, fetch=True).found
    assert not look_at_data(downloaded).later
    monkeypatch.setattr(data_check, "_can_be_made", lambda place: False)
    with pytest.raises(MissingDataError, match="not downloaded(?s:.)*let this user write"):
        look_at_data(options("mnist", root=str(tmp_path / "locked"), download=True))


def test_a_text_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"words " * 5000)[:-10])
    with pytest.raises(CorruptDataError, match="cannot be read"):
        look_at_data(options("text", root=str(tmp_path)))
    file.write_bytes(gzip.compress(b"words " * 5000))
    assert "about 105 training examples" in look_at_data(options("text", root=str(tmp_path))).found
    assert not (tmp_path / "cache/lqray/tokens-1").exists()
    (tmp_path / "short.txt").write_text("short")
    for given, split in (({}, "training"), ({"context": 3, "validation": 0.01}, "test")):
        with pytest.raises(CorruptDataError, match=f"tokens for the {split} set"):
            look_at_data(options("text", root=str(tmp_path / "short.txt"), **given))
    with pytest.raises(UnfitTrialError, match=r"data\.vocabulary"):
        look_at_data(options("text", root=str(tmp_path / "short.txt"), vocabulary=10))
    with pytest.raises(MissingDataError, match=r"tokenizer\.json"):
        look_at_data(options("text", root=str(tmp_path / "short.txt"), tokenizer=str(tmp_path / "no.json")))


def test_the_vocabulary_of_gpt2_is_not_fetched_unless_asked(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("fetched")

    monkeypatch.setattr(tokenizing, "_gpt2", never)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "a.txt"
    file.write_text("words " * 5000)
    text = options("text", root=str(file), tokenizer="gpt2", context=8)
    monkeypatch.setattr("lqray.training.data.text.gpt2_is_here", lambda: False)
    assert "GPT-2's vocabulary" in look_at_data(text).later
    monkeypatch.setattr("lqray.training.data.text.gpt2_is_here", lambda: True)
    assert not look_at_data(text).later
    with pytest.raises(AssertionError, match="fetched"):
        look_at_data(text, fetch=True)
    file.write_bytes(b"\xff words" * 1000)
    with pytest.raises(CorruptDataError, match="no UTF-8"):
        look_at_data(text)


def test_without_a_package_there_is_no_gpt2(monkeypatch):
    monkeypatch.setattr(tokenizing, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install tokenizers"):
        tokenizing.gpt2_is_here()


def test_a_dataset_of_ones_own_may_make_its_files(tmp_path, monkeypatch):
    (tmp_path / "check_own.py").write_text(
        "def load(options): raise AssertionError('loaded')\n"
        f"def data_files(options): return ['{tmp_path}/made.csv']\n"
        "class Bare:\n    def load(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own = options("check_own:load")
    assert "made.csv is not there" in look_at_data(own).later
    assert "made.csv is not there" in look_at_data(own, fetch=True).later
    (tmp_path / "made.csv").touch()
    assert look_at_data(own) == data_check.DataFound("check_own:load: 1 of 1 files")
