"""To the target: one definition, of tables, files and figures."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lqray.cli import main
from lqray.reporting.histories import history
from lqray.reporting.targets import BYTES, BYTES_A_STEP, SECONDS, TargetError, check_target, counted, first_at, until
from lqray.store.runs import Run
from tests.testing.drawn_figures import at_steps, drawn, legend_of, marked, plotted
from tests.testing.figure_stores import FigureStore
from tests.testing.reports import groups, report

STEPS = (100, 200, 300)


class One(FigureStore):
    """Whose single experiment `tests.testing.reports` finds."""

    experiment = "known"


def points(*values):
    return history(list(range(100, 100 * len(values) + 1, 100)), list(values), [0.0] * len(values))


def of_points(store, method, seed, values, totals):
    metrics = {"test/accuracy": at_steps(values), "wire/total_bytes_sent": at_steps(totals)}
    store.run(method, seed, metrics | {"time/training_seconds": at_steps([one / 1000 for one in totals])})


def test_the_first_evaluation_that_is_finite_and_at_least_as_good():
    assert first_at(points(0.5, 0.8, 0.7), 0.8, higher=True) == 200
    assert first_at(points(math.inf, 0.8), 0.8, higher=True) == 200
    assert first_at(points(2.0, -math.inf, 1.5, 1.0), 1.5, higher=False) == 300
    assert first_at(points(0.5, 0.7), 0.8, higher=True) is None
    assert first_at(None, 0.8, higher=True) is None
    assert first_at(history([], [], []), 0.8, higher=True, smooth=3) is None


def test_a_running_mean_is_not_there_for_one_lucky_evaluation():
    noisy = points(0.1, 0.9, 0.1, 0.7, 0.8, 0.9)
    assert first_at(noisy, 0.8, higher=True) == 200
    assert first_at(noisy, 0.8, higher=True, smooth=3) == 500  # mean of 0.7, 0.8 and 0.9


def test_sums_are_those_recorded_then_on_the_line_between_them_then_so_much_a_step():
    read = {
        "wire/total_bytes_sent": {"a": history([100, 200], [1000.0, 3000.0], [0, 0])},
        "wire/bytes_sent": {"a": history([100, 200], [10.0, 20.0], [0, 0]), "b": history([1, 2], [4.0, 6.0], [0, 0])},
    }
    steps = np.asarray([50.0, 100.0, 150.0, 200.0, 300.0])
    of_a = until(lambda key: read.get(key, {}), "a", steps, "wire/total_bytes_sent")
    np.testing.assert_allclose(of_a, [500, 1000, 2000, 3000, 4500])
    of_b = until(lambda key: read.get(key, {}), "b", steps, "wire/total_bytes_sent")
    np.testing.assert_allclose(of_b, 5 * steps)
    assert np.isnan(until(lambda key: {}, "a", steps, "time/training_seconds")).all()


def test_report_and_figure_say_the_same_bytes(tmp_path):
    """Seeds that are there after 100 and 300 steps: 2 MB in the mean, while their mean is there after 300, at 3 MB."""
    store = One(tmp_path)
    of_points(store, "alq", 1, (0.8, 0.8, 0.8), (1e6, 2e6, 3e6))
    of_points(store, "alq", 2, (0.2, 0.3, 0.8), (1e6, 2e6, 3e6))
    of_points(store, "bf16", 1, (0.1, 0.9, 0.2), (1e7, 2e7, 3e7))
    of_points(store, "bf16", 2, (0.1, 0.2, 0.3), (1e7, 2e7, 3e7))
    made = report(store.save(), target=0.8)
    by_method = {name: one.metrics["test/accuracy"] for name, one in groups(made).items()}
    assert by_method["alq"].to_target["bytes"].mean == 2e6
    assert by_method["bf16"].to_target["bytes"].mean == 2e7
    figure, remarks = drawn(store, "bytes_to_accuracy", target=0.8)
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in marked(figure.axes[0], "reached")]
    assert sorted(marks) == [(2e6, 0.8), (2e7, 0.8)]
    assert sorted(legend_of(figure)[1]) == ["alq (2 MB)", "bf16 (20 MB) (1 of 2)"]
    assert "bf16: 1 of 2 runs reached the target; the mark is of these" in remarks


def test_report_and_figure_say_the_same_of_a_running_mean_and_of_runs_without_sums(tmp_path):
    """Between points recorded at other steps than the evaluations, and of bytes a step that vary."""
    store = One(tmp_path)
    for method, volume in (
        ("alq", {"wire/total_bytes_sent": {50: 100.0, 250: 900.0, 350: 1000.0}}),
        ("bf16", {"wire/bytes_sent": {1: 90.0, 11: 110.0, 21: 70.0}}),
    ):
        for seed, values in ((1, (0.9, 0.3, 0.6)), (2, (0.4, 0.9, 0.8))):
            store.run(method, seed, {"test/accuracy": at_steps(values, STEPS)} | volume)
    for smooth in (0, 2):
        found = groups(report(store.save() if not smooth else store, target=0.6, smooth=smooth))
        expected = {name: one.metrics["test/accuracy"].to_target["bytes"].mean for name, one in found.items()}
        steps = {name: one.metrics["test/accuracy"].to_target["steps"].mean for name, one in found.items()}
        assert steps["alq"] == ((100 + 200) / 2 if not smooth else (100 + 100) / 2)
        assert expected["bf16"] == pytest.approx(90 * steps["bf16"])
        figure, _ = drawn(store, "bytes_to_accuracy", target=0.6, smooth=smooth)
        marks = [line.get_xdata()[0] for line in marked(figure.axes[0], "reached")]
        assert sorted(marks) == sorted(expected.values())
    assert expected["alq"] == 300  # 100 + (100 - 50) * (900 - 100) / (250 - 50)


def test_every_format_says_how_many_and_that_it_is_of_a_mean(tmp_path):
    from lqray.reporting.report import written

    store = One(tmp_path)
    of_points(store, "alq", 1, (0.5, 0.7, 0.9), (1e6, 2e6, 3e6))
    of_points(store, "alq", 2, (0.2, 0.3, 0.4), (1e6, 2e6, 3e6))
    made = report(store.save(), target=0.6, smooth=3)
    text = written(made, "markdown")
    assert "To 60.00%: until the first evaluation that was there as the mean of 3 evaluations" in text
    assert "100 (1 of 2)" in text  # of 0.5 and 0.7: there are fewer at the ends
    assert json.loads(written(made, "json"))["smooth"] == 3
    (row,) = csv.DictReader(io.StringIO(written(made, "csv")))
    assert (row["bytes to target"], row["reached target"]) == ("1000000.0", "1")


@pytest.mark.parametrize(
    ("target", "metric", "values", "said"),
    [
        (90, "test/accuracy", [0.5], "found --target 90; accuracy is a share: did you mean 0.9"),
        (-1, "test/error", [0.5], "error is a share: allowed: 0 to 1"),
        (1000, "test/accuracy", [0.5], "allowed: 0 to 1"),
        (math.nan, "test/loss", [0.5], "found --target nan; allowed: a finite number"),
        (math.inf, "test/accuracy", [0.5], "allowed: a finite number"),
    ],
)
def test_targets_that_nothing_can_be_at_are_refused(target, metric, values, said):
    with pytest.raises(TargetError, match=said):
        check_target(target, metric, values)


def test_targets_that_can_be_are_not():
    check_target(1.0, "test/accuracy", [0.5, math.inf])
    check_target(90, "test/accuracy", [88.0])  # of a task of one's own, in percent
    check_target(90, "test/perplexity", [88.0])


def test_the_commands_refuse_them(tmp_path):
    from click.testing import CliRunner

    store = One(tmp_path)
    of_points(store, "alq", 1, (0.5, 0.7, 0.9), (1e6, 2e6, 3e6))
    store.save()
    done = CliRunner().invoke(main, ["report", "known", "--uri", store.uri, "--target", "90"])
    assert (done.exit_code, "did you mean 0.9?" in done.stderr) == (2, True)
    out = str(tmp_path / "figures")
    done = plotted(store, "known", "--kind", "bytes_to_accuracy", "--target", "90", "--out", out)
    assert (done.exit_code, "did you mean 0.9?" in done.stderr) == (2, True)
    done = CliRunner().invoke(main, ["report", "known", "--uri", store.uri, "--smooth", "3"])
    assert (done.exit_code, "found --smooth without --target" in done.stderr) == (2, True)


def test_of_a_run_that_kept_no_history_its_last_values_count():
    steps = np.array([100.0, 200.0])
    run = Run("a", "t", "n", "FINISHED", {"schedule.iterations": "400"}, {BYTES: 8000.0, BYTES_A_STEP: 7.0})
    np.testing.assert_array_equal(counted(lambda key: {}, run, steps, BYTES), [2000, 4000])
    np.testing.assert_array_equal(counted(lambda key: {}, replace(run, params={}), steps, BYTES), [700, 1400])
    assert np.isnan(counted(lambda key: {}, run, steps, SECONDS)).all()
