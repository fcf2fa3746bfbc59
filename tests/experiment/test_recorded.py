"""What runs ran with that were recorded before an option was there."""

import json

from lqray.experiment.recorded import filled, founding_text
from lqray.experiment.schema import Trial

CONFIG = {
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 3, "batch_size": 8},
    "quantizer": {"method": "alq"},
}
LATER = ("optimizer.clip_norm", "optimizer.decayed", "schedule.accumulate", "model.dtype")


def test_what_is_missing_is_as_a_run_of_today_records_it():
    today = Trial.model_validate(CONFIG).params()
    old = {key: value for key, value in today.items() if key not in LATER}
    assert len(old) == len(today) - len(LATER)
    assert filled(old, LATER) == today
    smoothed = Trial.model_validate(CONFIG | {"task": {"label_smoothing": 0.1}}).params()
    plain = filled(today, smoothed)
    assert {key for key in plain if plain[key] != smoothed[key]} == {"task.label_smoothing"}
    assert json.loads(plain["task.label_smoothing"]) == 0


def test_what_a_method_does_not_have_stays_missing():
    params = Trial.model_validate(CONFIG | {"quantizer": {"method": "full_precision"}}).params()
    assert founding_text(params, "quantizer.bits") is None
    assert founding_text(params, "quantizer.levels") is None
    assert founding_text(params | {"quantizer.method": "alq"}, "quantizer.levels") == "shared"
    assert founding_text(params, "nothing.of_this_kind") is None
    assert founding_text({}, "optimizer.decayed") is None
    assert founding_text({"optimizer.name": "torch.optim:RMSprop"}, "optimizer.clip_norm") == "null"
