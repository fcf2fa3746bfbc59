"""Which code a trial runs: a digest of its parts' files, found without an import, and of nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lqray.experiment import part_files, parts
from lqray.experiment.schema import Trial

PACKAGE = {
    "lab/__init__.py": "from lab import absent\n",
    "lab/nets.py": "from . import blocks\nfrom lab.deep.more import x\nimport numpy\nimport beside\n",
    "lab/blocks.py": "def build():\n    from .lazy import y\n",
    "lab/lazy.py": (
        "try:\n    import absent\nexcept ImportError:\n    import lab.a\nelse:\n    import lab.b\n"
        "finally:\n    import lab.c\nmatch 1:\n    case 1:\n        import lab.d\n"
    ),
    **dict.fromkeys((f"lab/{letter}.py" for letter in "abcd"), ""),
    "lab/deep/__init__.py": "",
    "lab/deep/more.py": "from ..up import z\n",
    "lab/up.py": "raise SystemExit('imported')",
    "lab/other.py": "",
    "beside.py": "",
    "single.py": "import beside\nimport lab.other\n",
}
MODULES = {f"lab.{name}" for name in ("nets", "blocks", "lazy", "a", "b", "c", "d", "deep.more", "up")}


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
    part_files._imported.cache_clear()
    sys.path_importer_cache.clear()


def trial_of(model: str, **options) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": model},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 1, "batch_size": 1},
        "quantizer": {"method": "qsgd"},
    }
    return Trial.model_validate(config | options)


def digest(model: str = "lab.nets:build", **options) -> str:
    forget()
    return part_files.parts_digest(trial_of(model, **options))


def test_a_packages_files_that_a_part_imports(folder):
    found = part_files.part_files("model", "lab.nets:build")
    assert set(found) == {"lab", "lab.deep", *MODULES}
    assert found["lab.up"] == folder / "lab" / "up.py"
    assert "lab" not in sys.modules


def test_a_single_modules_files_are_those_beside_it(folder):
    assert set(part_files.part_files("model", "single:build")) == {"single", "beside", "lab", "lab.other"}


def test_a_package_without_an_init_has_files(folder):
    (folder / "lab" / "__init__.py").unlink()
    (folder / "lab" / "deep" / "__init__.py").unlink()
    found = part_files.part_files("model", "lab.nets:build")
    assert set(found) == MODULES


def test_an_environment_and_lqray_itself_in_a_users_folder_are_not_theirs(folder, monkeypatch):
    site = folder / ".venv" / "lib" / "site-packages"
    for file in (site / "other" / "__init__.py", folder / "lqray" / "training.py"):
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.syspath_prepend(site)
    (folder / "single.py").write_text("import beside, other, lqray.training")
    assert set(part_files.part_files("model", "single:build")) == {"single", "beside"}


def test_of_an_installed_package_it_is_what_the_part_imports_of_its_own_package():
    found = part_files.part_files("optimizer", "torch.optim:RMSprop")
    assert {"torch.optim", "torch.optim.rmsprop", "torch.optim.optimizer"} <= set(found)
    assert all(one.startswith("torch.optim") for one in found)


@pytest.mark.parametrize(
    ("section", "name", "has", "has_not"),
    [
        ("quantizer", "alq", "methods.alq solvers quantizer codec", "sparse methods.topk"),
        ("quantizer", "topk", "methods.topk sparse compressor", "solvers quantizer"),
        ("quantizer", "full_precision", "methods.full_precision", "compressor solvers"),
        ("model", "cnn", "models.cnn", "models.resnet loop"),
        ("data", "fashion_mnist", "data.fashion_mnist idx images", "cifar loop"),
        ("optimizer", "muon", "optimizers.muon", "optimizers.adam loop"),
        ("exchange", "all_gather", "reductions.all_gather wire.parcel", "reductions.scatter_reduce attach"),
    ],
)
def test_lqrays_own_part_is_what_it_imports_of_its_room(section, name, has, has_not):
    room = part_files._PLACES[section].split(".")[0]
    found = {one.removeprefix(f"lqray.{room}.") for one in part_files.part_files(section, name)}
    assert set(has.split()) <= found
    assert not set(has_not.split()) & found
    assert not any(one.startswith("lqray") for one in found)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("quantization/methods/alq.py", True),
        ("quantization/solvers.py", True),
        ("quantization/quantizer.py", True),
        ("training/images.py", True),
        ("quantization/methods/topk.py", False),
        ("training/loop.py", False),
        ("experiment/grid.py", False),
        ("reporting/tables.py", False),
    ],
)
def test_which_edits_of_lqray_count(tmp_path, monkeypatch, name, counts):
    copy = tmp_path / "lqray"
    shutil.copytree(part_files._PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(part_files, "_PACKAGE", copy)
    before = digest("cnn", quantizer={"method": "alq"})
    with (copy / name).open("a") as file:
        file.write("# edited\n")
    assert (digest("cnn", quantizer={"method": "alq"}) != before) is counts
    forget()


def test_a_digest_of_all_parts_imports_neither_them_nor_torch():
    code = (
        "import sys\nfrom lqray.experiment import names, part_files\n"
        "for section, listed in {'quantizer': names.methods, 'model': names.models, 'data': names.datasets,"
        " 'optimizer': names.optimizers, 'exchange': names.reductions}.items():\n"
        "    for name in listed():\n        assert part_files.part_files(section, name)\n"
        "print(*(one for one in sys.modules if one == 'torch' or one.startswith('lqray.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {one.split(".")[1] for one in done.stdout.split()} == {"experiment"}


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


def test_the_files_of_own_parts_in_a_folder(folder):
    (folder / "elsewhere").mkdir()
    trial = trial_of("lab.nets:build", optimizer={"name": "torch.optim:RMSprop", "lr": 0.1})
    found = part_files.own_files([trial, trial], folder)
    names = {f"{name.replace('.', '/')}.py" for name in MODULES} | {"lab/__init__.py", "lab/deep/__init__.py"}
    assert set(found) == names
    assert all(file == (folder / name).resolve() for name, file in found.items())
    assert part_files.own_files([trial], folder / "elsewhere") == {}
    assert set(part_files.own_digests(trial)) == {"model lab.nets:build", "optimizer torch.optim:RMSprop"}


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
