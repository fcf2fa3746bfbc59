"""The history of levels: what is kept of what was measured."""

import math

import torch

from lqray.experiment.schema import Trial
from lqray.training import levels as module
from lqray.training.checkpoint import Checkpoints, read_checkpoint
from lqray.training.checkpoint_file import written_form
from lqray.training.levels import LevelHistory, is_level
from lqray.training.reports import Report
from lqray.training.worker import run_worker


def measured(*values: float, name: str = "quantizer/level") -> dict[str, float]:
    return {f"{name}/{j}": value for j, value in enumerate(values)}


def test_levels_are_metrics_with_a_number():
    assert is_level("quantizer/level/3")
    assert is_level("quantizer/layer/0.weight/level/12")
    assert is_level("quantizer/slope/0")
    for other in ("quantizer/nmse", "quantizer/level", "quantizer/2_bits/multiplier", "level/3", "test/level/3"):
        assert not is_level(other)


def test_levels_that_stay_are_kept_once_and_other_metrics_not_at_all():
    history = LevelHistory()
    assert history.document() is None
    history.add(1, measured(-1, 0.5, 1) | {"quantizer/nmse": 0.1})
    history.add(11, measured(-1, 0.5, 1))
    history.add(21, measured(-1, 0.25, 1) | measured(2.0, name="quantizer/shared/slope"))
    history.add(31, measured(-1, math.nan, 1))
    assert history.document() == {
        "every": 1,
        "series": {
            "quantizer/level": {"steps": [1, 11, 21], "rows": [0, 0, 1], "values": [[-1, 0.5, 1], [-1, 0.25, 1]]},
            "quantizer/shared/slope": {"steps": [21], "rows": [0], "values": [[2.0]]},
        },
    }


def test_more_than_eleven_levels_are_in_the_order_of_their_numbers():
    history = LevelHistory()
    history.add(1, dict(sorted(measured(*range(12)).items())))
    assert history.document()["series"]["quantizer/level"]["values"] == [[*range(12)]]


def test_a_history_is_bounded_covers_the_run_and_goes_on_as_if_it_had_not_been_saved(monkeypatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 100)
    whole, saved = LevelHistory(), LevelHistory()
    for step in range(1000):
        for one in (whole, saved):
            one.add(step, measured(-step, step, step + 1))
        if step % 7 == 0:
            state = saved.state_dict()
            saved = LevelHistory()
            saved.load_state_dict(state)
    assert saved == whole
    (series,) = whole.document()["series"].values()
    assert series["steps"] == list(range(0, 1000, whole.every))
    assert 10 <= len(series["steps"]) <= 20
    assert [series["values"][row][1] for row in series["rows"]] == series["steps"]


def test_what_one_measurement_has_is_kept_however_much_it_is(monkeypatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 4)
    history = LevelHistory()
    for step in range(9):
        history.add(step, measured(*range(5 + step)))
    assert history.document()["series"]["quantizer/level"]["steps"] == [0]


TRIAL = Trial.model_validate(
    {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [16]},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 14, "batch_size": 16},
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [2, 9]},
        "telemetry": {"every": 3},
    }
)


def last_report(folder) -> Report:
    reports: list[Report] = []
    run_worker(TRIAL, reports.append, torch.device("cpu"), 1, checkpoints=Checkpoints(folder, 4))
    return reports[-1]


def test_a_checkpoint_of_before_levels_had_a_history_is_continued_without_their_beginning(tmp_path):
    whole = last_report(tmp_path)
    for file in tmp_path.glob("*.pt"):
        document = read_checkpoint(file, torch.device("cpu"))
        del document["shared"]["levels"]
        file.write_bytes(b"".join(written_form(document)))
    (tmp_path / "step-0000000014.pt").unlink()
    continued = last_report(tmp_path)
    steps = [one.levels.document()["series"]["quantizer/level"]["steps"] for one in (whole, continued)]
    assert steps == [[1, 4, 7, 10, 13], [13]]
    assert continued.metrics["test/loss"] == whole.metrics["test/loss"]
    assert continued.metrics["quantizer/mean_nmse"] == whole.metrics["quantizer/mean_nmse"]
