"""Which code a trial runs: a digest of its parts' files, found without an import, and of nothing else."""

import sys
from pathlib import Path

import pytest

from lqray.experiment import part_files, parts
from lqray.experiment.schema import Trial

PACKAGE = {
    "lab/__init__.py": "from lab import absent\n",
    "lab/nets.py": "from . import blocks\nfrom lab.deep.more import x\nimport numpy\nimport beside\n",
    "lab/blocks.py": "def build():\n    from .lazy import y\n",
    "lab/lazy.py": "",
    "lab/deep/__init__.py": "",
    "lab/deep/more.py": "from ..up import z\n",
    "lab/up.py": "raise SystemExit('imported')",
    "lab/other.py": "",
    "beside.py": "",
    "single.py": "import beside\nimport lab.other\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_places", [])
    monkeypatch.setattr(parts, "_added", [])
    for name, text in PACKAGE.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    part_files._digest.cache_clear()
    part_files._of_part.cache_clear()
    sys.path_importer_cache.clear()


def digest(model: str = "lab.nets:build", **options) -> str:
    forget()
    config = {
        "data": {"name": "digits"},
        "model": {"name": model},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 1, "batch_size": 1},
        "quantizer": {"method": "qsgd"},
    }
    return part_files.parts_digest(Trial.model_validate(config | options))


def test_a_packages_files_that_a_part_imports(folder):
    found = part_files.part_files("model", "lab.nets:build")
    assert set(found) == {"lab", "lab.nets", "lab.blocks", "lab.lazy", "lab.deep", "lab.deep.more", "lab.up"}
    assert found["lab.up"] == folder / "lab" / "up.py"
    assert "lab" not in sys.modules


def test_a_single_modules_files_are_those_beside_it(folder):
    assert set(part_files.part_files("model", "single:build")) == {"single", "beside", "lab", "lab.other"}


def test_lqrays_own_part_is_its_file():
    (file,) = part_files.part_files("optimizer", "muon").values()
    assert file.parts[-3:] == ("training", "optimizers", "muon.py")


@pytest.mark.parametrize(
    ("name", "counts"),
    [("lab/nets.py", True), ("lab/lazy.py", True), ("lab/up.py", True), ("lab/other.py", False), ("beside.py", False)],
)
def test_what_changes_the_digest(folder, name, counts):
    before = digest()
    (folder / name).write_text(PACKAGE[name] + "# edited\n")
    assert (digest() != before) is counts


def test_a_digest_is_of_the_parts_chosen(folder):
    assert digest() != digest("single:build")
    assert digest() != digest(optimizer={"name": "adam", "lr": 0.1})
    assert digest() == digest(optimizer={"name": "sgd", "lr": 0.2}, seed=3)


def test_where_a_folder_is_does_not_matter(folder, monkeypatch):
    before = digest()
    moved = folder / "moved"
    moved.mkdir()
    for name in ("lab", "beside.py"):
        Path(folder / name).rename(moved / name)
    monkeypatch.chdir(moved)
    assert digest() == before


def test_a_part_that_is_not_found_has_no_files(folder):
    assert part_files.part_files("model", "nowhere.nets:build") == {}
    assert part_files.part_files("model", "torch.absent:build") == {}
