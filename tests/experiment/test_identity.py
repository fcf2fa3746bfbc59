import importlib
import json
import pkgutil
from pathlib import Path

import pytest
from pydantic import Field

from lqray.experiment import names, options
from lqray.experiment.grid import read_experiment
from lqray.experiment.identity import canonical, founding_values, trial_id
from lqray.experiment.options import data, model, quantizer, schedule
from lqray.experiment.options.section import Section
from lqray.experiment.schema import Trial

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "data": {"name": "digits"},
    "model": {"name": "cnn"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 10, "batch_size": 4},
    "quantizer": {"method": "alq"},
}


def test_ids_of_the_quickstart_never_change():
    ids = [named.trial.id for named in read_experiment(ROOT / "experiments/quickstart.yaml").trials()]
    assert ids == json.loads((Path(__file__).parent / "quickstart_ids.json").read_text())


def test_adding_a_field_with_a_default_changes_no_id():
    class Grown(schedule.ScheduleOptions):
        warm_up: int = 0

    class NewSection(Section):
        flag: bool = False

    class GrownTrial(Trial):
        schedule: Grown
        novelty: NewSection = NewSection()

    assert trial_id(GrownTrial.model_validate(CONFIG)) == Trial.model_validate(CONFIG).id
    changed = {**CONFIG, "novelty": {"flag": True}}
    assert trial_id(GrownTrial.model_validate(changed)) != Trial.model_validate(CONFIG).id


def test_changing_a_default_does_not_alias_old_runs():
    class Old(Section):
        momentum: float = 0.0

    class New(Section):
        momentum: float = Field(default=0.9, json_schema_extra={"founding": 0.0})

    assert trial_id(Old()) != trial_id(New())
    assert trial_id(Old()) == trial_id(New(momentum=0.0))
    assert trial_id(Old(momentum=0.9)) == trial_id(New())


def test_founding_values_are_pinned():
    """A changed default must declare its founding value; a new field adds a line to founding_values.json."""
    found = {
        cls.__name__: {name: _plain(value) for name, value in founding_values(cls).items()}
        for module in pkgutil.iter_modules(options.__path__)
        for cls in vars(importlib.import_module(f"{options.__name__}.{module.name}")).values()
        if isinstance(cls, type) and issubclass(cls, Section)
    }
    pinned = json.loads((Path(__file__).parent / "founding_values.json").read_text())
    assert {name: values for name, values in found.items() if values} == pinned


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"workers": 2},
        {"quantizer": {"method": "alq", "bits": 4}},
        {"optimizer": {"name": "sgd", "lr": 0.2}},
        {"telemetry": {"every": 7}},
    ],
)
def test_what_changes_the_result_changes_the_id(change):
    assert Trial.model_validate({**CONFIG, **change}).id != Trial.model_validate(CONFIG).id


def test_levels_that_are_shared_are_no_parameter_of_a_run():
    """As in runs of before there were others: MLflow compares the first parameters that differ."""
    chosen = [
        Trial.model_validate(CONFIG | {"quantizer": {"method": "alq", "levels": kind}}) for kind in ("shared", "layer")
    ]
    shared, layer = (trial.flat() for trial in chosen)
    assert not {"quantizer.levels", "quantizer.levels_from"} & set(shared)
    assert (layer["quantizer.levels"], layer["quantizer.levels_from"]) == ("layer", 4)


def test_where_files_are_does_not_change_the_id():
    """But augmentation does."""
    trials = [
        Trial.model_validate({**CONFIG, "data": {"name": "cifar10", **keys}})
        for keys in ({}, {"root": "/elsewhere", "download": True}, {"augmentation": "none"})
    ]
    assert trials[0].id == trials[1].id != trials[2].id
    assert canonical(trials[1])["data"] == {"name": "cifar10"}
    assert trials[1].config()["data"]["root"] == "/elsewhere"


def test_a_sweep_over_datasets_shares_their_keys():
    for name in names.datasets():
        trial = Trial.model_validate({**CONFIG, "data": {"name": name, "root": "~/data", "download": False}})
        assert getattr(trial.data, "root", "~/data") == "~/data"


def test_defaults_written_out_and_key_order_do_not_change_the_id():
    trial = Trial.model_validate(CONFIG)
    again = Trial.model_validate(dict(reversed(trial.config().items())))
    assert again.id == trial.id
    assert canonical(trial)["quantizer"] == {"method": "alq"}


def test_an_integer_where_a_number_is_wanted_is_the_same_number():
    one = Trial.model_validate({**CONFIG, "optimizer": {"name": "sgd", "lr": 1}})
    assert one.id == Trial.model_validate({**CONFIG, "optimizer": {"name": "sgd", "lr": 1.0}}).id


def test_every_name_has_a_module_and_every_table_entry_a_name():
    assert set(quantizer.QUANTIZER) <= set(names.methods())
    assert set(model.MODEL) <= set(names.models())
    assert set(data.DATA) <= set(names.datasets())
    assert names.reductions() == ("all_gather", "hierarchical", "scatter_reduce")


def test_gradients_exchanged_at_every_step_are_as_before_there_was_anything_else():
    """No parameter more, and no id for what an outer optimizer would do."""
    before = Trial.model_validate(CONFIG)
    seldom = {"outer": {"optimizer": "sgd", "lr": 1.0}, "fragments": 3, "overlap": 2, "mixing": 0.5}
    without = Trial.model_validate({**CONFIG, "exchange": {"every": None, **seldom}})
    assert without == before
    assert without.id == before.id
    new = ("exchange.every", "exchange.outer", "exchange.fragments", "exchange.overlap", "exchange.mixing")
    assert not [key for key in before.flat() if key.startswith(new)]
    apart = Trial.model_validate({**CONFIG, "exchange": {"every": 5, **seldom}})
    assert apart.flat()["exchange.outer.optimizer"] == "sgd"
    assert apart.flat()["exchange.overlap"] == 2
    others = [{"every": 6}, {"fragments": 2}, {"overlap": 1}, {"mixing": 0.0}, {"outer": {"optimizer": "nesterov"}}]
    ids = [Trial.model_validate({**CONFIG, "exchange": {"every": 5, **seldom, **other}}).id for other in others]
    assert len({before.id, apart.id, *ids}) == 7
    adam = [{"every": 5, "outer": {"optimizer": "adam", **more}} for more in ({}, {"momentum": 0.5})]
    with_it, without = (Trial.model_validate({**CONFIG, "exchange": exchange}) for exchange in adam)
    assert with_it.id == without.id


def test_how_hosts_send_belongs_to_trials_in_which_they_do():
    given = {"hosts": 2, "within": "bf16"}
    config = {**CONFIG, "workers": 4}
    plain = Trial.model_validate(config)
    without = Trial.model_validate({**config, "exchange": {"reduction": "all_gather", **given}})
    assert without.id == plain.id
    assert without.flat() == plain.flat()
    assert not {"exchange.hosts", "exchange.within"}.intersection(plain.flat())
    by_hosts = Trial.model_validate({**config, "exchange": {"reduction": "hierarchical", **given}})
    assert by_hosts.flat()["exchange.hosts"] == 2
    assert by_hosts.flat()["exchange.within"] == "bf16"
    assert Trial.model_validate(by_hosts.config()).id == by_hosts.id
    others = [{"hosts": 4}, {"hosts": None}, {"within": "float32"}]
    ids = [
        Trial.model_validate({**config, "exchange": {"reduction": "hierarchical", **given, **other}}).id
        for other in others
    ]
    assert len({plain.id, by_hosts.id, *ids}) == 5
