"""Which files data are read from, and when their digest is another."""

import os
import subprocess
import sys

import pytest

from lqray.experiment import parts
from lqray.experiment.errors import PartError
from lqray.experiment.schema import Trial
from lqray.training import data_files
from lqray.training.data_files import data_digest
from lqray.training.vision import torchvision
from tests.testing.dataset_files import WRITERS, write_idx


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data_files, "_known", {})
    return tmp_path / "cache" / "lqray" / data_files._CACHE


def options_of(data: dict[str, object]):
    rest = {"model": {"name": "linear"}, "optimizer": {"name": "sgd", "lr": 0.1}, "quantizer": {"method": "qsgd"}}
    return Trial.model_validate({"data": data, "schedule": {"iterations": 1, "batch_size": 1}, **rest}).data


def digest(name: str, root: object = None, **options: object) -> str | None:
    given = options if root is None else {"root": str(root), **options}
    return data_digest(options_of({"name": name, **given}))


def write(file, content: bytes, age: float = 100.0) -> None:
    """As of `age` seconds ago."""
    file.write_bytes(content)
    then = file.stat().st_mtime - age
    os.utime(file, (then, then))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_files_that_are_listed_are_those_that_are_read(tmp_path, monkeypatch, name):
    WRITERS[name](tmp_path, monkeypatch)
    found = data_files.data_files(options_of({"name": name, "root": str(tmp_path)}))
    if name == "imagenet":
        assert found is None
        return
    assert found
    assert all(file.is_file() for file in found.values())
    if name.startswith("cifar"):
        source = getattr(torchvision.datasets, name.upper())
        assert set(found) == {one for one, _ in (*source.train_list, *source.test_list)}
    first, *_ = found.values()
    before = digest(name, tmp_path)
    first.write_bytes(first.read_bytes() + b"more")
    assert before
    assert digest(name, tmp_path) != before


def test_neither_the_place_nor_the_packing_matters(tmp_path):
    write_idx(tmp_path / "one")
    write_idx(tmp_path / "two" / "MNIST" / "raw", zipped=True)
    assert digest("mnist", tmp_path / "one") == digest("mnist", tmp_path / "two")


@pytest.mark.parametrize("name", ["digits", "gaussian_mixture", "imagenet", "linear", "mnist", "svhn", "text"])
def test_none_where_there_are_no_files(tmp_path, name):
    options = {} if name in ("digits", "gaussian_mixture", "linear") else {"root": tmp_path}
    assert digest(name, **options) is None


def test_a_damaged_archive_has_none(tmp_path):
    write_idx(tmp_path, zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    assert digest("mnist", tmp_path) is None


def test_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch, cache):
    read = []
    once = data_files._sha256
    monkeypatch.setattr(data_files, "_sha256", lambda file: read.append(file.name) or once(file))
    write_idx(tmp_path / "raw")
    for file in (tmp_path / "raw").iterdir():
        write(file, file.read_bytes())
    before = digest("mnist", tmp_path / "raw")
    assert len(read) == 4
    data_files._known.clear()  # as another process
    assert digest("mnist", tmp_path / "raw") == before
    assert len(read) == 4
    write(tmp_path / "raw" / data_files.IDX_FILES[0], b"other", age=50)
    assert digest("mnist", tmp_path / "raw") != before
    assert read[4:] == [data_files.IDX_FILES[0]]
    cache.write_text("damaged")
    data_files._known.clear()
    assert digest("mnist", tmp_path / "raw")


def test_a_file_just_written_is_not_kept(tmp_path):
    """Within a tick of the clock it may be written again."""
    write_idx(tmp_path)
    before = digest("mnist", tmp_path)
    file = tmp_path / data_files.IDX_FILES[1]
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest("mnist", tmp_path) != before


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes my_files.py and gives the digest of data of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_places", [])
    monkeypatch.setattr(parts, "_added", [])

    def made(text: str) -> str | None:
        sys.modules.pop("my_files", None)
        (tmp_path / "my_files.py").write_text(f"def load(options): ...\n{text}\n")
        return digest("my_files:load", options={"folder": str(tmp_path / "set")})

    yield made
    sys.modules.pop("my_files", None)


def test_a_users_own_lists_files_and_folders(tmp_path, own):
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "deep" / "one.csv").write_text("1")
    (tmp_path / "set" / "two.csv").write_text("2")
    listing = "def data_files(options): return [options['folder']]"
    before = own(listing)
    assert before
    assert own("import os\ndef data_files(options): yield from [os.path.join(options['folder'], 'deep/one.csv'), "
               "options['folder'] + '/two.csv']") == before  # fmt: skip
    (tmp_path / "set" / "deep" / "one.csv").write_text("3")
    assert own(listing) != before
    (tmp_path / "set" / "deep" / "one.csv").rename(tmp_path / "set" / "one.csv")
    assert own(listing) != before
    assert own("def data_files(options): return [options['folder'] + '/not-yet.csv']") is None
    assert own("def data_files(options): return options['folder']") == own(listing)
    assert own("") is None


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [3]", "found 3; allowed"),
        ("return options['fodler']", "raised KeyError: 'fodler'"),
        ("return None", "raised TypeError"),
    ],
)
def test_what_lists_no_paths_is_told(own, tmp_path, body, told):
    assert own(f"def data_files(options): {body}") is None
    with pytest.raises(PartError, match="data_files of data my_files:load.*" + told):
        data_files.data_files(options_of({"name": "my_files:load"}))


def test_no_torch_is_needed():
    code = "import sys, lqray.training.data_files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
