"""Every dataset, on small files in its real format."""

import errno
import gzip
import multiprocessing
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from lqray.experiment import names
from lqray.experiment.options.data import DownloadedOptions
from lqray.experiment.schema import Trial
from lqray.training import augmentation
from lqray.training.batches import Batches
from lqray.training.data import digits
from lqray.training.data.fashion_mnist import DEBIAN_FOLDER
from lqray.training.dataset import Dataset, load_dataset
from lqray.training.files import CorruptDataError, MissingDataError, fetch, folder
from lqray.training.images import moments
from lqray.training.worker import run_worker
from tests.testing.dataset_files import TEST, TRAIN, WRITERS, images, write_idx

OPTIONS: dict[str, dict[str, object]] = {
    "imagenet": {"size": 16, "loading_processes": 2},
    "gaussian_mixture": {"classes": 5, "dimension": 7},
    "linear": {"dimension": 7},
    "text": {"context": 16},
}
UNSCALED = {"gaussian_mixture", "imagenet", "linear", "text"}
"""Not standardized by their own training set."""
FROM_FILES = sorted(set(WRITERS) - {"text"})
"""Of a folder that is no part of a trial's id."""
KINDS = {
    "classification": (torch.float32, torch.int64),
    "regression": (torch.float32, torch.float32),
    "language_modelling": (torch.int64, torch.int64),
}
"""Types of inputs and targets by task."""


def load(name: str, root: Path | None = None, **options: object) -> Dataset:
    where = {} if root is None or name not in WRITERS else {"root": str(root)}
    config = {
        "data": {"name": name, **where, **OPTIONS.get(name, {}), **options},
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 1, "batch_size": 1},
        "quantizer": {"method": "sgd"},
    }
    return load_dataset(Trial.model_validate(config).data)


@pytest.fixture(params=names.datasets())
def dataset(request, tmp_path, monkeypatch):
    """Each dataset, from small files where it has files."""
    name = request.param
    if name in WRITERS:
        WRITERS[name](tmp_path, monkeypatch)
    return load(name, tmp_path)


def test_examples_of_a_dataset(dataset):
    """Types and ranges; the parts of an evaluation give each example once, and training inputs are standardized."""
    found = {}
    task = getattr(dataset, "task", "classification")
    for split in ("train", "test"):
        parts = [list(dataset.evaluation(split, part, 3, 7)) for part in range(3)]
        for inputs, labels in (batch for part in parts for batch in part):
            assert (inputs.dtype, labels.dtype) == KINDS[task]
            assert tuple(inputs.shape) == (len(labels), *dataset.shape)
            assert len(labels) <= 7
        whole = list(dataset.evaluation(split, 0, 1, 1000))
        inputs, labels = (torch.cat(tensors) for tensors in zip(*whole, strict=True))
        for part, batches in enumerate(parts):
            torch.testing.assert_close(torch.cat([inputs for inputs, _ in batches]), inputs[part::3], rtol=0, atol=0)
            assert torch.equal(torch.cat([labels for _, labels in batches]), labels[part::3])
        if task == "classification":
            assert set(labels.tolist()) == set(range(dataset.classes))
        found[split] = inputs
    assert len(found["train"]) == dataset.train_examples
    assert len(found["test"]) == dataset.test_examples
    rows = {row.numpy().tobytes() for row in found["train"]}
    assert not any(row.numpy().tobytes() in rows for row in found["test"])


@pytest.mark.parametrize("name", sorted(set(names.datasets()) - UNSCALED))
def test_training_inputs_have_mean_0_and_deviation_1(name, tmp_path, monkeypatch):
    if name in WRITERS:
        WRITERS[name](tmp_path, monkeypatch)
    dataset = load(name, tmp_path)
    inputs = torch.cat([inputs for inputs, _ in dataset.evaluation("train", 0, 1, 1000)])
    for channel in inputs.unbind(1):
        assert float(channel.mean()) == pytest.approx(0, abs=1e-4)
        assert float(channel.std()) == pytest.approx(1, abs=1e-3)


def test_training_batches_of_a_dataset(dataset):
    """`feed` gives `train_batch` of each draw, a function of its arguments, and leaves the random state alone."""
    state = torch.get_rng_state()
    draws = list(Batches(dataset.train_examples, 6, 2, seed=3).draws(0, 3, range(2)))
    fed = list(dataset.feed(draws))
    assert len(fed) == len(draws)
    expected = torch.cat([labels for _, labels in dataset.evaluation("train", 0, 1, 50)])
    for (chosen, seed), (inputs, labels) in zip(draws, fed, strict=True):
        again, _ = dataset.train_batch(chosen, seed)
        assert torch.equal(inputs, again)
        assert torch.equal(labels, expected[chosen])
        assert tuple(inputs.shape) == (6, *dataset.shape)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", FROM_FILES)
def test_files_that_are_not_there(name, tmp_path, monkeypatch):
    with pytest.raises(MissingDataError) as found:
        load(name, tmp_path / "nowhere")
    assert f"dataset {name}: not found\n  looked in: {tmp_path / 'nowhere'} (data.root)" in str(found.value)
    assert "hint:" in str(found.value)
    monkeypatch.setenv("LQRAY_DATA", str(tmp_path / "variable"))
    with pytest.raises(MissingDataError, match=r"variable \(the environment variable LQRAY_DATA\)"):
        load(name)
    monkeypatch.delenv("LQRAY_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingDataError, match=rf"{tmp_path}/data \(the default; .*LQRAY_DATA are not set\)"):
        load(name)


def test_how_to_get_files_that_are_not_there(tmp_path):
    with pytest.raises(MissingDataError, match=f"`download: true`, or `apt-get install .*` and `root: {DEBIAN_FOLDER}"):
        load("fashion_mnist", tmp_path)
    with pytest.raises(MissingDataError, match="for:       cifar-10-batches-py/data_batch_1\n.*cifar-10-python.tar.gz"):
        load("cifar10", tmp_path)


def test_files_that_are_not_what_they_should_be(tmp_path, monkeypatch):
    write_idx(tmp_path / "short")
    path = tmp_path / "short/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match="has 47,039 bytes of data; its header says 47,040"):
        load("mnist", tmp_path / "short")
    write_idx(tmp_path / "zipped", zipped=True)
    path = tmp_path / "zipped/t10k-labels-idx1-ubyte.gz"
    for content in (path.read_bytes()[:-9], b"no gzip", gzip.compress(b"no idx")):
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match="dataset mnist: its files in"):
            load("mnist", tmp_path / "zipped")
    WRITERS["cifar10"](tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(b"no pickle")
    with pytest.raises(CorruptDataError, match="UnpicklingError"):
        load("cifar10", tmp_path)


def test_cifar_files_must_have_the_checksums_of_the_real_ones(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        WRITERS["cifar10"](tmp_path, patch)
    with pytest.raises(CorruptDataError, match="corrupted"):
        load("cifar10", tmp_path)


def fetch_once(root: str, started: float) -> None:
    """Download, slowly, one file that must not exist."""
    target = Path(root) / "file"

    def download() -> None:
        with target.with_suffix(".log").open("a") as log:
            log.write("downloaded\n")
        multiprocessing.Event().wait(started)
        target.touch(exist_ok=False)

    fetch(DownloadedOptions(name="mnist", root=root, download=True), target.exists, download)
    assert target.exists()


def test_one_of_several_processes_downloads(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch_once, args=(str(tmp_path / "new"), 0.2)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "new/file.log").read_text() == "downloaded\n"


def test_nothing_is_downloaded_unasked(tmp_path):
    fetch(DownloadedOptions(name="mnist", root=str(tmp_path)), lambda: False, lambda: pytest.fail("downloaded"))


def test_sizes_and_layouts(tmp_path, monkeypatch):
    shipped = load("digits")
    assert (len(shipped.train), len(shipped.test), shipped.shape) == (1437, 360, (1, 8, 8))
    for name in WRITERS:
        WRITERS[name](tmp_path, monkeypatch)
    monkeypatch.setenv("LQRAY_DATA", str(tmp_path))
    assert (load("mnist").train_examples, load("mnist").shape) == (TRAIN, (1, 28, 28))
    assert (len(load("fashion_mnist").test), load("cifar10").shape) == (TEST, (3, 32, 32))
    assert torch.equal(load("mnist").train.pixels, torch.from_numpy(images(TRAIN, 1, 28, 0)))
    assert torch.equal(load("cifar10").test.pixels, torch.from_numpy(images(TEST, 3, 32, 6)))


@pytest.mark.skipif(
    not Path(DEBIAN_FOLDER).is_dir(), reason=f"no {DEBIAN_FOLDER}: apt-get install dataset-fashion-mnist"
)
def test_the_real_fashion_mnist():
    dataset = load("fashion_mnist", Path(DEBIAN_FOLDER))
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (60_000, 10_000, (1, 28, 28))
    assert dataset.train.labels.bincount().tolist() == [6000] * 10
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert dataset.mean[0] / 255 == pytest.approx(0.2860, abs=1e-4)  # the constants in use for it
    assert dataset.deviation[0] / 255 == pytest.approx(0.3530, abs=1e-4)


def test_svhn_with_and_without_its_extra_set(tmp_path, monkeypatch):
    WRITERS["svhn"](tmp_path, monkeypatch)
    assert load("svhn", tmp_path).train_examples == 2 * TRAIN
    short = load("svhn", tmp_path, extra=False)
    assert short.train_examples == TRAIN
    assert torch.equal(short.train.pixels, torch.from_numpy(images(TRAIN, 3, 32, 0)))
    assert short.train.labels[:11].tolist() == [*range(10), 0]


def test_imagenet_batches_do_not_depend_on_the_processes_that_load_them(tmp_path, monkeypatch):
    WRITERS["imagenet"](tmp_path, monkeypatch)
    ahead, alone = (load("imagenet", tmp_path, loading_processes=count) for count in (2, 0))
    draws = [(torch.arange(6), 5), (torch.arange(6), 6)]
    fed = [list(dataset.feed(draws)) for dataset in (ahead, alone)]
    for (one, _), (other, _) in zip(*fed, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(fed[0][0][0], fed[0][1][0])  # another seed, other crops


def test_imagenet_folders_that_do_not_fit(tmp_path, monkeypatch):
    WRITERS["imagenet"](tmp_path, monkeypatch)
    (tmp_path / "val/n00000001/1.png").write_bytes(b"no picture")
    dataset = load("imagenet", tmp_path, loading_processes=0)
    with pytest.raises(CorruptDataError, match=r"1\.png cannot be read as an image"):
        list(dataset.evaluation("test", 0, 1, 8))
    (tmp_path / "val/n00000001").rename(tmp_path / "val/n00000009")
    with pytest.raises(CorruptDataError, match="3 classes, val/ 3, not the same"):
        load("imagenet", tmp_path)


def test_a_gaussian_mixture_is_what_its_options_say():
    mixture = load(
        "gaussian_mixture", classes=10, dimension=50, centre_scale=3.0, noise_scale=0.5, train_size=5000, test_size=100
    )
    values, labels = mixture.train.pixels[:, 0, 0], mixture.train.labels
    centres = torch.stack([values[labels == label].mean(0) for label in range(10)])
    assert float(centres.std()) == pytest.approx(3, rel=0.1)
    assert float((values - centres[labels]).std()) == pytest.approx(0.5, rel=0.02)
    assert len(mixture.test) == 100
    other = load("gaussian_mixture", classes=10, dimension=50, data_seed=1)
    assert not torch.equal(other.train.pixels[:100, 0, 0], values[:100])


def test_a_linear_regression_is_what_its_options_say():
    sizes = {"train_size": 20_000, "test_size": 20_000}
    regression = load("linear", dimension=20, noise_scale=0.5, condition=100.0, **sizes)
    assert (regression.task, regression.shape) == ("regression", (20,))
    inputs, targets = regression.train
    variances = inputs.var(0)
    assert float(variances[0] / variances[-1]) == pytest.approx(100, rel=0.05)
    assert (variances[1:] / variances[:-1]).tolist() == pytest.approx([100 ** (-1 / 19)] * 19, rel=0.07)
    solved = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]
    torch.testing.assert_close(solved, regression.weights, rtol=0, atol=0.12)
    inputs, targets = regression.test
    loss = (inputs @ regression.weights - targets).square().mean() / 2
    assert regression.optimum == 0.125
    assert float(loss) == pytest.approx(regression.optimum, rel=0.03)
    assert float((inputs @ solved - targets).square().mean() / 2) == pytest.approx(regression.optimum, rel=0.03)


def test_a_regression_is_learned_down_to_its_optimum():
    config = {
        "data": {"name": "linear", "dimension": 5, "noise_scale": 0.2, "train_size": 2000, "test_size": 2000},
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd", "lr": 0.5},
        "schedule": {"iterations": 60, "batch_size": 500},
        "quantizer": {"method": "full_precision"},
    }
    last = run_worker(Trial.model_validate(config), lambda report: None, torch.device("cpu"), 1)
    assert last["test/excess_loss"] == pytest.approx(last["test/loss"] - 0.02)
    assert abs(last["test/excess_loss"]) < 0.002


def test_a_regression_without_noise_is_exact_and_of_its_seed():
    exact = load("linear", noise_scale=0.0, dimension=1)
    inputs, targets = exact.test
    torch.testing.assert_close(inputs @ exact.weights, targets)
    assert exact.optimum == 0
    other = load("linear", noise_scale=0.0, dimension=1, data_seed=1)
    assert not torch.equal(other.weights, exact.weights)
    assert not torch.equal(other.test[0], inputs)
    assert not torch.equal(exact.train[0], inputs)


def test_moments_are_exact():
    pixels = torch.from_numpy(images(100, 3, 5, 0))
    mean, deviation = moments(pixels)
    values = pixels.to(torch.float64).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(values.mean(1).tolist(), rel=1e-12)
    assert deviation == pytest.approx(values.std(1).tolist(), rel=1e-12)
    assert moments(torch.full((2, 1, 2, 2), 7, dtype=torch.uint8)) == ((7.0,), (1.0,))


@pytest.mark.parametrize("name", ["none", "standard", "strong"])
def test_augmentation_changes_training_batches_alone(name, tmp_path, monkeypatch):
    WRITERS["cifar10"](tmp_path, monkeypatch)
    plain, dataset = load("cifar10", tmp_path, augmentation="none"), load("cifar10", tmp_path, augmentation=name)
    chosen = torch.arange(16)
    (before, labels), (after, same) = plain.train_batch(chosen, 1), dataset.train_batch(chosen, 1)
    assert torch.equal(labels, same)
    assert torch.equal(before, after) == (name == "none")
    assert torch.equal(dataset.train_batch(chosen, 2)[0], after) == (name == "none")
    evaluations = (part.evaluation("train", 0, 1, 9) for part in (plain, dataset))
    for (one, _), (other, _) in zip(*evaluations, strict=True):
        assert torch.equal(one, other)
    assert plain.train_batch(chosen, 2**64 - 1)[0].shape == before.shape
    assert dataset.augmentation == augmentation.chosen_steps(name, flips=True)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (URLError("[Errno -3] Temporary failure in name resolution"), "is this machine on the network"),
        (RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried https://one, got:\n..."), "on the network"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "let this user write there"),
        (OSError(errno.ENOSPC, "No space left on device"), "free space there"),
    ],
)
def test_a_download_that_fails_says_what_to_do(tmp_path, error, hint):
    def download():
        raise error

    with pytest.raises(MissingDataError, match=hint) as raised:
        fetch(DownloadedOptions(name="mnist", root=str(tmp_path), download=True), lambda: False, download)
    assert str(raised.value).startswith(f"dataset mnist: not downloaded\n  to:    {tmp_path} (data.root)")
    assert raised.value.__suppress_context__, "what torchvision tried is fifty lines"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "let this user read them"),
        (OSError(errno.EIO, "Input/output error"), "look at that disk"),
        (gzip.BadGzipFile("Not a gzipped file"), "delete them and get them again"),
        (ValueError("magic number"), "delete them and get them again"),
    ],
)
def test_files_that_cannot_be_read_are_not_always_to_be_deleted(tmp_path, error, hint):
    found = str(folder(DownloadedOptions(name="mnist", root=str(tmp_path))).corrupt("mnist", error))
    assert hint in found.partition("hint:")[2]


@pytest.mark.parametrize("found", [True, False])
def test_digits_are_those_of_scikit_learn_wherever_its_file_lies(monkeypatch, found):
    from sklearn.datasets import load_digits

    if not found:
        monkeypatch.setattr(digits, "find_spec", lambda name: None)
    bunch = load_digits()
    pixels, classes = digits._shipped()
    assert (pixels.dtype, classes.dtype) == (np.uint8, np.uint8)
    assert np.array_equal(pixels, bunch.data)
    assert np.array_equal(classes, bunch.target)
