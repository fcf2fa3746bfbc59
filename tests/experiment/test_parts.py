"""Parts of a user's own: named by reference or entry point, resolved without an import, loaded or told why not."""

import json
import subprocess
import sys
from typing import Protocol, runtime_checkable

import pytest
from pydantic import BaseModel, Field, ValidationError

from lqray.experiment import parts
from lqray.experiment.errors import ExperimentError, PartError
from lqray.experiment.grid import experiment_from_text, read_experiment
from lqray.experiment.options.model import MODEL
from lqray.experiment.part_options import part_options
from lqray.experiment.schema import Trial

BASE = {
    "data": {"name": "digits"},
    "model": {"name": "cnn"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 1, "batch_size": 1},
    "quantizer": {"method": "full_precision"},
}
FILE = """
name: own
base:
  data: {name: "absent.data:load", options: {size: 8}}
  model: {name: "absent.nets:build", options: {width: 3}}
  optimizer: {name: "absent.optim:build", lr: 0.1, weight_decay: 0.01, options: {alpha: 0.5}}
  schedule: {iterations: 2, batch_size: 4}
  exchange: {reduction: "absent.reductions:Ring", options: {hops: 2}}
  quantizer: {method: full_precision}
sweep:
- matrix: {model.options.width: [1, 2], exchange.options.hops: [1, 2]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory for modules of a user's own; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_places", [])
    monkeypatch.setattr(parts, "_added", [])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes entry points of installed packages: a group, a name, its reference, and the package."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(group, name, value, distribution="somebody"):
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
        parts._entry_points.cache_clear()

    yield make
    parts._entry_points.cache_clear()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("my_lab.nets:build", True),
        ("nets:Zoo.small", True),
        ("nets", False),
        ("my_lab.nets.build", False),
        ("my-lab:build", False),
        (":build", False),
        ("nets:", False),
        ("nets:1", False),
        ("a:b:c", False),
        ("../nets:build", False),
        (3, False),
    ],
)
def test_what_a_reference_is(name, is_one):
    assert parts.is_reference(name) is is_one


def test_names_of_lqrays_own_are_no_references_even_where_a_package_has_them(installed):
    installed("lqray.models", "cnn", "somebody.nets:build")
    assert parts.reference_of("models", "cnn") is None
    assert Trial.model_validate(BASE).model.name == "cnn"


def test_an_entry_points_name_becomes_its_reference_and_imports_nothing(installed):
    installed("lqray.models", "bert", "somebody.nets:build")
    trial = Trial.model_validate({**BASE, "model": {"name": "bert", "options": {"layers": 2}}})
    written = Trial.model_validate({**BASE, "model": {"name": "somebody.nets:build", "options": {"layers": 2}}})
    assert trial.model.name == "somebody.nets:build"
    assert trial.id == written.id
    assert parts.reference_of("datasets", "bert") is None
    assert "bert" in parts.known("models")


def test_two_packages_with_one_name_are_told(installed):
    installed("lqray.models", "bert", "one.nets:build", "one")
    installed("lqray.models", "bert", "two.nets:build", "two")
    with pytest.raises(ValidationError, match=r"one\.nets:build, two\.nets:build"):
        Trial.model_validate({**BASE, "model": {"name": "bert"}})


def test_expanding_imports_no_part(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(FILE)
    trials = [named.trial for named in read_experiment(file).trials()]
    assert [(t.model.options["width"], t.exchange.options["hops"]) for t in trials] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len({trial.id for trial in trials}) == 4
    assert "absent" not in sys.modules
    assert trials[0].params()["model.options.width"] == "1"


def test_names_of_trials_say_the_options_that_vary():
    names = [named.name for named in experiment_from_text(FILE, "own.yaml").trials()]
    assert names == ["width1-hops1", "width1-hops2", "width2-hops1", "width2-hops2"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "nets:other", "options": {"width": 1}}},
        {"model": {"name": "nets:build", "options": {"width": 2}}},
        {"model": {"name": "nets:build", "options": {"width": 1, "deep": {"er": [1]}}}},
        {"model": {"name": "nets:build"}},
        {"model": {"name": "nets:build", "options": {"width": 1}, "amp": "bf16"}},
    ],
)
def test_reference_and_options_are_in_the_id(change):
    one = {**BASE, "model": {"name": "nets:build", "options": {"width": 1}}}
    assert Trial.model_validate({**one, **change}).id != Trial.model_validate(one).id


def test_an_id_survives_its_own_record():
    trial = next(iter(experiment_from_text(FILE, "own.yaml").trials())).trial
    assert Trial.model_validate(json.loads(json.dumps(trial.config()))).id == trial.id


def test_options_are_left_out_with_names_of_lqrays_own():
    """One base serves a sweep over one's own model and lqray's."""
    trial = Trial.model_validate(
        {**BASE, "model": {"name": "cnn", "options": {"width": 1}}, "exchange": {"options": {}}}
    )
    assert trial.id == Trial.model_validate(BASE).id
    own = Trial.model_validate({**BASE, "model": {"name": "nets:build", "channels": [1, 2]}})
    assert own.id == Trial.model_validate({**BASE, "model": {"name": "nets:build"}}).id


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("absent.nets:build", "cnnn"), ["unknown name 'cnnn'", "'cnn'?", "one of your own, written module:attribute"]),
        (("absent.nets:build", "my.nets.build"), ["after a colon: my.nets:build"]),
        (("absent.reductions:Ring", "ring"), ["all_gather, hierarchical, scatter_reduce, or one of your own"]),
        (("{size: 8}", "{size: .nan}"), ["data.options", "finite numbers"]),
        (("{size: 8}", "[3]"), ["data.options", "a mapping"]),
        (("{size: 8}", '{"a.b": 3}'), ["data.options", "'a.b'"]),
        (("{alpha: 0.5}", "{lr: 0.5}"), ["optimizer.options", "optimizer.lr"]),
        (("lr: 0.1, ", ""), ["optimizer.lr", "required"]),
        (("absent.nets:build", "cnn"), ["'options.width', which belongs to module:attribute", "only cnn"]),
    ],
)
def test_errors_of_the_file_name_the_key(tmp_path, edit, told):
    file = tmp_path / "own.yaml"
    assert edit[0] in FILE
    file.write_text(FILE.replace(*edit))
    with pytest.raises(ExperimentError) as caught:
        read_experiment(file)
    for part in told:
        assert part in str(caught.value)


def test_a_part_of_the_working_directory_is_loaded(folder):
    (folder / "lab_a").mkdir()
    (folder / "lab_a" / "nets.py").write_text("class Zoo:\n    small = 7\n")
    assert parts.load("models", "lab_a.nets:Zoo.small") == 7


def test_the_experiments_folder_is_looked_in_after_all_others(folder):
    for place in ("here", "there"):
        (folder / place).mkdir()
        (folder / place / "lab_b.py").write_text(f"WHERE = {place!r}\n")
    (folder / "there" / "lab_c.py").write_text("WHERE = 'there'\n")
    sys.path.insert(0, str(folder / "here"))
    parts.add_place(folder / "there")
    assert parts.load("models", "lab_b:WHERE") == "here"
    assert parts.load("models", "lab_c:WHERE") == "there"


def test_a_module_that_is_not_found_says_where_it_was_looked_for(folder):
    parts.add_place("experiments")
    with pytest.raises(PartError) as caught:
        parts.load("models", "lab_d.nets:build")
    for told in (
        "model lab_d.nets:build",
        "no module lab_d,",
        str(folder / "experiments"),
        "PYTHONPATH",
        "pip install",
    ):
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reference", "told"),
    [
        ("def build(): ...", "lab_e:biuld", ["no attribute 'biuld'", "did you mean 'build'?"]),
        ("import absent_package", "lab_e:build", ["imports absent_package"]),
        ("1 / 0", "lab_e:build", ["ZeroDivisionError", "division by zero"]),
        ("x = 1", "lab_e.below:build", ["no module lab_e.below"]),
    ],
)
def test_what_is_wrong_with_a_part_is_told(folder, text, reference, told):
    (folder / "lab_e.py").write_text(text)
    with pytest.raises(PartError) as caught:
        parts.load("models", reference)
    for part in told:
        assert part in str(caught.value)


def test_another_module_of_that_name_is_not_taken_for_it(folder, monkeypatch):
    for place in ("one", "two"):
        (folder / place).mkdir()
        (folder / place / "lab_f.py").write_text(f"WHERE = {place!r}\n")
    monkeypatch.chdir(folder / "one")
    assert parts.load("models", "lab_f:WHERE") == "one"
    monkeypatch.chdir(folder / "two")
    with pytest.raises(PartError, match="imported lab_f from"):
        parts.load("models", "lab_f:WHERE")


class _Options(BaseModel):
    width: int = Field(default=4, ge=1)
    rates: tuple[float, ...] = ()


def _declared(options):
    """As a part is: a function with OPTIONS."""


_declared.OPTIONS = _Options


def test_a_parts_options_are_checked_by_its_class():
    assert part_options("model", "nets:build", _declared, {"rates": [1, 2]}) == _Options(rates=(1.0, 2.0))
    assert part_options("model", "nets:build", object(), {"width": 0}) == {"width": 0}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 0}, ["model.options.width", "found:   0", "a number of at least 1"]),
        ({"widht": 1}, ["unknown key 'widht'", "did you mean 'width'?"]),
        ({"rates": [1, "x"]}, ["model.options.rates[1]", "'x'"]),
    ],
)
def test_wrong_options_of_a_part_are_told_by_the_files_keys(options, told):
    with pytest.raises(PartError) as caught:
        part_options("model", "nets:build", _declared, options)
    for part in told:
        assert part in str(caught.value)


def test_the_room_stays_a_leaf():
    code = "import sys; import lqray.experiment.grid; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert parts.OWN not in MODEL


@runtime_checkable
class _Protocol(Protocol):
    def parts(self) -> int: ...
    def close(self) -> None: ...


class _Half:
    def close(self) -> None: ...


def test_what_a_part_makes_is_looked_at():
    with pytest.raises(PartError, match="it makes a _Half, which has no parts; allowed: a _Protocol"):
        parts.checked("exchange lab:Half", _Half(), _Protocol)
    with pytest.raises(PartError, match="makes a str; allowed: a int"):
        parts.checked("model lab:build", "x", int)


def test_a_part_is_called_as_its_protocol_says():
    assert parts.call("model lab:build", lambda options, shape: shape, options={}, shape=(1, 2)) == (1, 2)
    with pytest.raises(PartError, match=r"function of \(options\); allowed: one of \(options, shape\)"):
        parts.call("model lab:build", lambda options: 1, options={}, shape=(1, 2))
    with pytest.raises(PartError, match="found int 3"):
        parts.call("model lab:build", 3, options={})
