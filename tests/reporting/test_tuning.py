"""`lqray report --tuned`: methods are compared at the best setting of each, and unequal tuning is named."""

import csv
import json
import math

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.reporting.report import written
from lqray.reporting.selection import UnknownKeyError
from tests.testing.experiments import BASE
from tests.testing.reports import report
from tests.testing.stores import Store

ACCURACY = {
    ("full_precision", "0.1"): (0.70, 0.72),
    ("full_precision", "0.2"): (0.75, 0.77),
    ("full_precision", "0.4"): (0.60, 0.95),
    ("alq", "0.1"): (0.80, 0.60),
    ("alq", "0.2"): (0.70, 0.71),
    ("alq", "0.4"): (0.90, math.nan),
    ("qsgd", "0.1"): (0.65, 0.67),
}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    for (method, rate), accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies, 1):
            tags = {"lqray.nan_metrics": "test/accuracy"} if math.isnan(accuracy) else {}
            values = [] if math.isnan(accuracy) else [accuracy]
            made.run(method, seed, values, params={"optimizer.lr": rate}, tags=tags, name=f"{method}-lr{rate}-s{seed}")
    return made


def rows(store, **options):
    found = report(store, **options)
    return {group.keys["quantizer.method"]: group for group in found.comparison.groups}, found


def test_each_method_is_shown_at_its_best_setting(store):
    found, made = rows(store, tuned=["lr"])
    assert {method: (g.keys["optimizer.lr"], g.keys["tried"]) for method, g in found.items()} == {
        "full_precision": ("0.4", "3"),
        "alq": ("0.2", "3"),
        "qsgd": ("0.1", "untuned (1 of 3)"),
    }
    assert found["alq"].metrics["test/accuracy"].final.mean == pytest.approx(0.705)
    difference = found["alq"].metrics["test/accuracy"].difference
    assert difference.spread.mean == pytest.approx(0.705 - 0.775)
    assert len(difference.pairs) == 2
    assert {one.params["optimizer.lr"] for one in found["alq"].records} == {"0.2"}
    said = " ".join(made.remarks)
    assert "best mean test/accuracy" in said
    assert "The runs that are shown also chose it" in said
    assert "rows had 1 to 3 settings; to compare them is not fair" in said


def test_a_seed_that_chooses_is_not_judged(store):
    found, made = rows(store, tuned=["optimizer.lr"], tuning_seeds=["1"])
    assert {method: group.keys["optimizer.lr"] for method, group in found.items()} == {
        "full_precision": "0.2",
        "alq": "0.4",
        "qsgd": "0.1",
    }
    assert found["full_precision"].metrics["test/accuracy"].final.mean == pytest.approx(0.77)
    assert "chosen by seed 1, which enters none" in " ".join(made.remarks)
    assert "also chose it" not in " ".join(made.remarks)
    for seeds, said in ((["1", "2"], "every seed"), (["9"], "--tuning-seeds 9")):
        with pytest.raises(UnknownKeyError, match=said):
            rows(store, tuned=["lr"], tuning_seeds=seeds)


def test_equal_terms_need_no_warning_and_trials_to_come_are_named(store):
    _, made = rows(store, tuned=["lr"], where=["method=alq"])
    assert "not fair" not in " ".join(made.remarks)
    store.run("alq", 1, status="RUNNING", params={"optimizer.lr": "0.8"}, name="alq-lr0.8-s1")
    _, made = rows(store, tuned=["lr"])
    assert "may still change the choice: 1 running." in " ".join(made.remarks)


def test_every_format_has_the_setting_and_how_many_were_tried(store):
    _, made = rows(store, tuned=["lr"])
    table = list(csv.DictReader(written(made, "csv").splitlines()))
    assert {row["quantizer.method"]: (row["optimizer.lr"], row["tried"]) for row in table} == {
        "full_precision": ("0.4", "3"),
        "alq": ("0.2", "3"),
        "qsgd": ("0.1", "untuned (1 of 3)"),
    }
    groups = json.loads(written(made, "json"))["groups"]
    assert {one["keys"]["tried"] for one in groups} == {"3", "untuned (1 of 3)"}
    for shape in ("markdown", "latex"):
        text = written(made, shape)
        assert "untuned (1 of 3)" in text
        assert "tried" in text
    command = ["report", "known", "--uri", store.uri, "--tuned", "optimizer.lr", "--format", "csv"]
    assert CliRunner().invoke(main, command).stdout == written(made, "csv")


def test_a_parameter_that_does_not_exist_or_tells_rows_apart_is_refused(store):
    with pytest.raises(UnknownKeyError, match="learning_rate"):
        rows(store, tuned=["learning_rate"])
    with pytest.raises(UnknownKeyError, match="in --group-by and in --tuned"):
        rows(store, tuned=["lr"], group_by=["optimizer.lr"])
    for never in ("seed", "method"):
        with pytest.raises(UnknownKeyError, match="allowed: what is tuned"):
            rows(store, tuned=[never])
    with pytest.raises(UnknownKeyError, match="--tuning-seeds without --tuned"):
        rows(store, tuning_seeds=["1"])


def test_of_a_loss_the_least_is_the_best(tmp_path):
    made = Store(tmp_path)
    for rate, loss in (("0.1", 2.0), ("0.2", 1.0), ("0.4", 3.0)):
        params = {"data.name": "text", "optimizer.lr": rate}
        made.run("alq", 1, [], params=params, metrics={"test/loss": loss}, name=f"alq-{rate}")
    groups, _ = rows(made, tuned=["lr"])
    assert groups["alq"].keys["optimizer.lr"] == "0.2"


def test_a_setting_that_no_run_could_choose_is_said(tmp_path):
    made = Store(tmp_path)
    for rate in ("0.1", "0.2"):
        made.run("alq", 1, [0.5], params={"optimizer.lr": rate}, name=f"alq-{rate}")
        made.run("qsgd", 1, [], status="FAILED", params={"optimizer.lr": rate}, name=f"qsgd-{rate}")
    _, found = rows(made, tuned=["lr"])
    assert "Rows of which no run says which setting is best, and the first is shown: 1." in found.remarks


def test_by_default_what_the_file_tunes_for_each(tmp_path):
    file = tmp_path / "file.yaml"
    Store(tmp_path, "test")
    file.write_text(
        f"{BASE}tracking: {{uri: 'sqlite:///{tmp_path}/lqray.db'}}\n"
        "sweep: [{matrix: {quantizer.method: [qsgd, alq]}}]\n"
        "search: {each: quantizer.method, trials: 2, space: {optimizer.lr: {uniform: [0.1, 0.2]}}}\n"
    )

    def columns(*more):
        done = CliRunner().invoke(main, ["report", str(file), "--format", "csv", *more])
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    assert columns()[0].startswith("quantizer.method,optimizer.lr,tried,")
    assert len(columns()) == 3
    assert len(columns("--tuned", "none")) == 5
    assert len(columns("--group-by", "trial")) == 5
