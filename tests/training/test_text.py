"""Text as data: which files, which windows, what is kept of their tokens, and what is said of those that do not fit."""

import gzip
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import Trial
from lqray.training import data_files
from lqray.training.corpus import corpus_files, find_corpus
from lqray.training.data import text as module
from lqray.training.data_files import data_digest
from lqray.training.estimate import check_network, estimate
from lqray.training.files import CorruptDataError, MissingDataError
from lqray.training.known_data import known_data
from lqray.training.tokenizing import Bytes
from lqray.training.worker import run_worker
from tests.testing.texts import contents, ids, is_mapped, load, options_of, write, write_tokens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data_files, "_known", {})
    return tmp_path / "cache" / "lqray" / module._FOLDER


def test_examples_are_windows_and_targets_the_tokens_that_follow(tmp_path):
    text = bytes(range(100)) + bytes(range(100, 130))
    data = load(write(tmp_path / "a.txt", text), context=8, validation=0.2)
    assert (data.task, data.shape, data.classes) == ("language_modelling", (8,), 256)
    assert (data.train_examples, data.test_examples) == (12, 3)  # (104 - 1) // 8 and (26 - 1) // 8
    inputs, targets = data.train_batch(torch.tensor([2, 0]), seed=1)
    assert inputs.tolist() == [list(range(16, 24)), list(range(8))]
    assert targets.tolist() == [list(range(17, 25)), list(range(1, 9))]
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    ((inputs, targets),) = data.evaluation("test", 0, 1, 100)
    assert inputs[:, 0].tolist() == [104, 112, 120]
    assert targets[-1].tolist() == list(range(121, 129))
    assert data.token_bytes.tolist() == [1] * 256


def test_a_folder_is_its_texts_in_the_order_of_their_names(tmp_path):
    for name in ("b.md", "a/z.txt", "a/b.py", "c.rst", "d.html"):
        write(tmp_path / "set" / name, f"<{name}>")
    for name in ("x.png", ".hidden.txt", ".git/e.txt", "Makefile"):
        write(tmp_path / "set" / name, "not of it")
    data = load(tmp_path / "set", context=1)
    assert contents(data.train) + contents(data.test) == b"<a/b.py><a/z.txt><b.md><c.rst><d.html>"
    before = data_digest(options_of(tmp_path / "set"))
    packed = gzip.compress((tmp_path / "set" / "b.md").read_bytes())
    write(tmp_path / "set" / "b.md.gz", packed)
    (tmp_path / "set" / "b.md").unlink()
    again = load(tmp_path / "set", context=1)
    assert contents(again.train) == contents(data.train)
    assert data_digest(options_of(tmp_path / "set")) == before


def test_without_a_root_it_is_the_standard_library():
    options = options_of()
    files = corpus_files(options)
    assert {"ast.py", "json/decoder.py", "asyncio/events.py"} < set(files)
    assert not any(
        set(Path(name).parts) & {"test", "tests", "idlelib", "site-packages", "__pycache__"} for name in files
    )
    assert not any(name.startswith(("_sysconfigdata", "config-")) for name in files)
    assert list(files) == sorted(files)
    data = load()
    size = sum(path.stat().st_size for path in files.values())
    assert size > 5_000_000
    assert len(ids(data.train)) + len(ids(data.test)) == size
    assert len(ids(data.test)) == pytest.approx(0.1 * size, abs=1)
    first = next(iter(files.values())).read_bytes()[:256]
    assert bytes(data.train_batch(torch.tensor([0]), 0)[0][0].to(torch.uint8).numpy()) == first
    assert data_digest(options)
    known = known_data(options)
    assert (known.shape, known.classes, known.tokens) == (data.shape, data.classes, True)
    assert known.examples == pytest.approx(data.train_examples, rel=0.001)


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"dataset text: not found\n  looked in: .*/nowhere \(data.root\)"):
        load(tmp_path / "nowhere")
    write(tmp_path / "set" / "picture.png")
    with pytest.raises(MissingDataError, match=r"for:       files \*.txt, \*.md, .*\n  hint:"):
        load(tmp_path / "set")
    write_tokens(tmp_path / "set" / "train.bin", range(100))
    with pytest.raises(MissingDataError, match=r"for:       \*val\*.bin"):
        load(tmp_path / "set")
    with pytest.raises(MissingDataError, match="dataset text: .*variable CORPORA is not set"):
        load("$CORPORA/set")
    with pytest.raises(MissingDataError, match=r"looked in: .*/none.json \(data.tokenizer\)"):
        load(write(tmp_path / "a.txt"), tokenizer=str(tmp_path / "none.json"))
    assert data_digest(options_of(tmp_path / "nowhere")) is None
    assert known_data(options_of(tmp_path / "nowhere")) is None
    monkeypatch.setenv("CORPORA", str(tmp_path))
    assert load("$CORPORA/a.txt", context=1, validation=0.3).train_examples == 6


def test_a_text_that_is_too_short(tmp_path):
    path = write(tmp_path / "a.txt", "x" * 100)
    with pytest.raises(CorruptDataError, match=r"found 10 tokens for the test set in .*a.txt; allowed: at least 11,"):
        load(path, context=10)
    assert load(path, context=9).test_examples == 1
    with pytest.raises(CorruptDataError, match="found 90 tokens for the training set"):
        load(path)


def test_tokens_are_kept_once_for_what_is_in_the_files(tmp_path, cache, monkeypatch):
    made = []
    encode = Bytes.encode
    monkeypatch.setattr(Bytes, "encode", lambda self, pieces: made.append(len(pieces)) or encode(self, pieces))
    path = write(tmp_path / "a.txt", "one text " * 10)
    one = load(path, context=4)
    assert is_mapped(one.train.streams[0])
    assert len(made) == 1
    elsewhere = write(tmp_path / "elsewhere" / "b.md.gz", gzip.compress(path.read_bytes()))
    assert contents(load(elsewhere, context=7).train) == contents(one.train)
    assert len(made) == 1
    assert [file.suffix for file in cache.iterdir() if file.name != ".lqray-lock"] == [".bin"]
    write(path, "two text " * 10)  # of the same size, at about the same time
    assert contents(load(path, context=4).train).startswith(b"two")
    assert len(made) == 2


@pytest.mark.parametrize("why", ["no home", "a file in its way"])
def test_where_nothing_can_be_kept_tokens_are_in_memory(tmp_path, cache, monkeypatch, why):
    path = write(tmp_path / "a.txt", "one text " * 10)
    expected = contents(load(path, context=4).train)
    if why == "no home":
        monkeypatch.setattr(module, "kept", lambda name: None)
        monkeypatch.setattr(data_files, "kept", lambda name: None)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "file")))
    data = load(path, context=4)
    assert not is_mapped(data.train.streams[0])
    assert contents(data.train) == expected


def test_an_interrupted_tokenization_leaves_nothing(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.txt", "one text " * 10)

    def broken(self, pieces):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bytes, "encode", broken)
        with pytest.raises(KeyboardInterrupt):
            load(path, context=4)
    assert [file.name for file in cache.iterdir()] == [".lqray-lock"]
    assert contents(load(path, context=4).train).startswith(b"one text")


def load_slowly(path: str, log: str) -> None:
    def encode(self, pieces):
        with Path(log).open("a") as file:
            file.write("made\n")
        multiprocessing.Event().wait(0.2)
        return [np.frombuffer(piece, np.uint8) for piece in pieces]

    Bytes.encode = encode
    assert load(path, context=4).train_examples == 20


def test_one_of_several_processes_makes_the_tokens(tmp_path, cache):
    path = write(tmp_path / "a.txt", "one text " * 10)
    context = multiprocessing.get_context("fork")
    log = str(tmp_path / "log")
    processes = [context.Process(target=load_slowly, args=(str(path), log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert Path(log).read_text() == "made\n"


def test_long_texts_are_read_in_pieces_that_end_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_BYTES", 7)
    seen = []
    encode = Bytes.encode
    monkeypatch.setattr(Bytes, "encode", lambda self, pieces: seen.extend(pieces) or encode(self, pieces))
    text = "ein Wort\nund noch\n\neins, längs\nende"
    data = load(write(tmp_path / "a.txt", text), context=1)
    assert contents(data.train) + contents(data.test) == text.encode() == b"".join(seen)
    assert len(seen) == 4
    assert all(piece.endswith(b"\n") for piece in seen[:-1])


def test_evaluation_of_some_windows_spread_over_all(tmp_path):
    path = write(tmp_path / "a.txt", bytes(range(250)))
    some, every = (load(path, context=2, validation=0.4, evaluation_examples=count) for count in (7, None))
    assert (every.test_examples, some.test_examples, some.train_examples) == (49, 7, every.train_examples)
    for split, step in (("test", 7), ("train", 74 / 7)):
        (chosen,), (whole,) = (list(data.evaluation(split, 0, 1, 100)) for data in (some, every))
        assert torch.equal(chosen[0], whole[0][[int(step * number) for number in range(7)]])
        parts = torch.cat([inputs for part in range(3) for inputs, _ in some.evaluation(split, part, 3, 2)])
        assert sorted(parts.tolist()) == chosen[0].tolist()
    assert load(path, context=2, evaluation_examples=1000).test_examples == 12


def trial(root: Path, **changes) -> Trial:
    return Trial.model_validate(
        {
            "data": {"name": "text", "root": str(root), "context": 16},
            "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 16},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "schedule": {"iterations": 12, "batch_size": 4, "evaluate_every": 6},
            "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [0, 5]},
            "workers": 2,
            **changes,
        }
    )


def test_a_small_gpt_trains_on_it(tmp_path):
    """Every byte is a token: bits per byte are the loss in bits."""
    path = write(tmp_path / "a.txt", "to be or not to be, " * 100)
    reports = []
    last = run_worker(trial(path), reports.append, torch.device("cpu"), 1)
    first = next(report.metrics for report in reports if "test/loss" in report.metrics)
    assert last["test/bits_per_byte"] == pytest.approx(last["test/loss"] / math.log(2), rel=1e-6)
    assert last["test/loss"] < first["test/loss"] < math.log(256)
    again = run_worker(trial(path), lambda report: None, torch.device("cpu"), 1)
    assert again["test/loss"] == last["test/loss"]


def test_what_it_will_cost_is_estimated(tmp_path):
    """About six operations for a weight of a matrix and a token, the embedding's twice used, and some for attention."""
    path = write(tmp_path / "a.txt", "to be or not to be, " * 100)
    known = estimate(trial(path, schedule={"epochs": 3, "batch_size": 4}), 1)
    assert known.parameters == 256 * 16 + 16 * 16 + 12 * 16 * 16 + 13 * 16 + 2 * 16
    weights = 256 * 16 + 12 * 16 * 16
    assert known.flops_per_step / (8 * 16) == pytest.approx(6 * weights, rel=0.25)
    assert known.iterations == 3 * (112 // 8)
    check_network(trial(path))
    with pytest.raises(UnfitTrialError, match=r"model\.vocabulary: found 100; allowed: at least 256"):
        check_network(trial(path, model={"name": "gpt", "vocabulary": 100}))
    with pytest.raises(UnfitTrialError, match=r"gpt takes tokens"):
        check_network(trial(path, data={"name": "digits"}))


def test_which_text_is_part_of_the_id(monkeypatch):
    config = {
        "model": {"name": "gpt"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 1, "batch_size": 1},
        "quantizer": {"method": "sgd"},
    }
    found = {
        Trial.model_validate({**config, "data": {"name": "text", **more}}).id
        for more in ({}, {"root": "$CORPORA/a"}, {"root": "/b"}, {"tokenizer": "gpt2"}, {"context": 8}, {"root": None})
    }
    assert len(found) == 5
    monkeypatch.setenv("CORPORA", "/elsewhere")
    assert Trial.model_validate({**config, "data": {"name": "text", "root": "$CORPORA/a"}}).id in found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokenizer": "gtp2"}, "bytes, gpt2, or the path of a file tokenizer.json"),
        ({"context": 0}, "greater than or equal to 1"),
        ({"validation": 0.0}, "greater than 0"),
        ({"validation": 1.0}, "less than 1"),
        ({"vocabulary": 1}, "greater than or equal to 2"),
        ({"evaluation_examples": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        options_of(**options)


def test_a_corpus_says_where_it_is_from(tmp_path):
    assert "standard library" in find_corpus(options_of()).place.origin
    assert find_corpus(options_of(write(tmp_path / "a.anything"))).train == {"a.anything": tmp_path / "a.anything"}


def test_a_damaged_archive_is_told(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"some words" * 100)[:-9])
    with pytest.raises(CorruptDataError, match=r"dataset text: its files in .*\n  found: EOFError"):
        load(path, context=4)


def test_no_torch_is_needed_to_find_files_and_vocabularies():
    code = (
        "import sys; from lqray.training import corpus, tokenizing, known_data; "
        "from lqray.experiment.schema import data_options; "
        "assert known_data.known_data(data_options({'name': 'text'})).classes == 256; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
