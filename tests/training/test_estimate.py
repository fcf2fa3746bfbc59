"""Estimates beside what data and real runs say."""

import pytest
import torch
from torch.distributed import group

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import Trial
from lqray.training.dataset import load_dataset
from lqray.training.estimate import check_network, estimate
from lqray.training.known_data import known_data
from lqray.training.loop import train
from lqray.training.models import build_model
from tests.testing.ranks import run_ranks

CONFIG = {
    "data": {"name": "digits"},
    "model": {"name": "cnn"},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "schedule": {"iterations": 3, "batch_size": 4},
    "workers": 2,
    "quantizer": {"method": "qsgd_inf", "bits": 3, "bucket_size": 64},
}


def test_facts_of_the_dataset_that_ships():
    trial = Trial.model_validate(CONFIG)
    dataset = load_dataset(trial.data)
    known = known_data(trial.data)
    assert (known.shape, known.classes, known.examples) == (dataset.shape, dataset.classes, dataset.train_examples)


def test_parameters_iterations_and_operations():
    trial = Trial.model_validate(CONFIG | {"schedule": {"epochs": 2, "batch_size": 8}})
    known = estimate(trial, 2)
    model = build_model(trial.model, (1, 8, 8), 10)
    assert known.parameters == sum(p.numel() for p in model.parameters())
    assert known.iterations == 2 * (1437 // 16)
    assert known.flops_per_step > 6 * known.parameters * 16


def metrics_of(rank: int, config: dict) -> dict[str, float]:
    return train(Trial.model_validate(config), group.WORLD, torch.device("cpu"), lambda report: None)


@pytest.mark.processes
@pytest.mark.parametrize("reduction", ["all_gather", "scatter_reduce"])
@pytest.mark.parametrize("method", ["full_precision", "qsgd_inf", "terngrad"])
def test_bytes_are_about_those_of_a_run(method, reduction):
    quantizer = {"method": method} | ({} if method == "full_precision" else {"bucket_size": 64})
    config = CONFIG | {"quantizer": quantizer, "exchange": {"reduction": reduction}}
    first, _ = run_ranks(metrics_of, 2, config)
    assert estimate(Trial.model_validate(config), 2).bytes_per_step == pytest.approx(first["wire/bytes_sent"], rel=0.02)


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "hosts", "within"), [(4, 2, "float32"), (4, 2, "bf16"), (2, 4, "float32")])
def test_bytes_by_way_of_hosts_are_about_those_of_a_run(processes, hosts, within):
    exchange = {"reduction": "hierarchical", "hosts": hosts, "within": within}
    config = CONFIG | {"workers": 4, "exchange": exchange}
    found = run_ranks(metrics_of, processes, config)[0]
    known = estimate(Trial.model_validate(config), processes)
    assert known.bytes_per_step == pytest.approx(found["wire/bytes_sent"], rel=0.02)
    assert found["wire/bytes_sent"] == found["wire/bytes_within_hosts"] + found["wire/bytes_between_hosts"]
    assert found["wire/bytes_between_hosts"] > 0
    somewhere = Trial.model_validate(config | {"exchange": {"reduction": "hierarchical"}})
    assert estimate(somewhere, processes).bytes_per_step is None


@pytest.mark.processes
def test_gradients_in_bfloat16_take_half():
    config = CONFIG | {"model": {"name": "cnn", "dtype": "bf16"}, "quantizer": {"method": "full_precision"}}
    first, _ = run_ranks(metrics_of, 2, config)
    assert estimate(Trial.model_validate(config), 2).bytes_per_step == pytest.approx(first["wire/bytes_sent"], rel=0.02)
    plain = Trial.model_validate(config | {"model": {"name": "cnn"}})
    assert estimate(plain, 2).bytes_per_step == pytest.approx(2 * first["wire/bytes_sent"], rel=0.02)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("method", "dtype"), [("full_precision", "float32"), ("full_precision", "bf16"), ("eden", "bf16")]
)
def test_bytes_of_seldom_exchanges_are_those_of_a_step(method, dtype):
    model = {"name": "cnn", "dtype": dtype}
    config = CONFIG | {"model": model, "quantizer": {"method": method}, "exchange": {"every": 3}}
    first, _ = run_ranks(metrics_of, 2, config)
    assert estimate(Trial.model_validate(config), 2).bytes_per_step == pytest.approx(first["wire/bytes_sent"], rel=0.02)


@pytest.mark.processes
def test_bits_by_parameter_are_counted_by_parameter():
    quantizer = {"method": "eden", "bits": {"7.*": 1, "0.*": 8, "default": 4}, "bucket_size": 64}
    config = CONFIG | {"quantizer": quantizer}
    first, _ = run_ranks(metrics_of, 2, config)
    assert estimate(Trial.model_validate(config), 2).bytes_per_step == pytest.approx(first["wire/bytes_sent"], rel=0.02)


def test_patterns_that_no_parameter_has_are_found_before_anything_runs():
    quantizer = {"method": "eden", "bits": {"fc.*": 1, "default": 4}}
    with pytest.raises(UnfitTrialError, match=r"quantizer\.bits: no parameter is called 'fc\.\*'.*here are 0\.weight"):
        check_network(Trial.model_validate(CONFIG | {"quantizer": quantizer}))
    check_network(Trial.model_validate(CONFIG | {"quantizer": quantizer | {"bits": {"7.*": 1, "default": 4}}}))


def test_more_fragments_than_layers_are_found_before_anything_runs():
    exchange = {"every": 20, "fragments": 20}
    with pytest.raises(UnfitTrialError, match=r"exchange\.fragments: 20, of a network that has \d layers"):
        check_network(Trial.model_validate(CONFIG | {"exchange": exchange}))
    check_network(Trial.model_validate(CONFIG | {"exchange": exchange | {"fragments": 2}}))


def test_unknown_is_unknown():
    assert estimate(Trial.model_validate(CONFIG | {"quantizer": {"method": "powersgd"}}), 2).bytes_per_step is None
    assert estimate(Trial.model_validate(CONFIG | {"quantizer": {"method": "sgd"}}), 1).bytes_per_step == 0


def test_data_of_ones_own_are_asked_for_their_shapes(tmp_path, monkeypatch):
    """Steps, bytes and operations, where the model's parameters follow from what the data say of themselves."""
    (tmp_path / "own_shapes.py").write_text(
        "from lqray.training.data import digits\n\n\ndef load(options):\n    return digits.load(options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = CONFIG | {"schedule": {"epochs": 2, "batch_size": 8}}
    known = estimate(Trial.model_validate(own), 2)
    assert estimate(Trial.model_validate(own | {"data": {"name": "own_shapes:load"}}), 2) == known
    assert estimate(Trial.model_validate(own | {"data": {"name": "not_there:load"}}), 2) is None
