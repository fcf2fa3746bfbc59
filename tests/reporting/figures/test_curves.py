"""Curves: means and intervals over seeds, in lines of their groups."""

import math

import numpy as np
from matplotlib.colors import same_color
from scipy import stats

from lqray.reporting.figures.seeds import across
from lqray.reporting.figures.style import MOST_IN_LEGEND
from lqray.reporting.histories import history, smoothed
from lqray.reporting.methods import look
from lqray.reporting.planned import Recorded
from lqray.reporting.plot import Request, plot
from tests.testing.drawn_figures import ACCURACY, STEPS, at_steps, bands, drawn, legend_of, lines, marked
from tests.testing.figure_stores import FigureStore
from tests.testing.reports import share_interval


def five(tmp_path, *methods):
    """A store of five seeds each, and the rows (5, 3) of their accuracies."""
    store = FigureStore(tmp_path)
    rows = {}
    for number, method in enumerate(methods):
        for seed in range(1, 6):
            values = tuple(0.1 * number + 0.02 * (seed * seed % 7) + at for at in (0.1, 0.2, 0.25))
            rows.setdefault(method, []).append(values)
            store.run(method, seed, {"test/accuracy": at_steps(values)}, {"schedule.decay_at": "[150, 250]"})
    return store.save(), {method: np.array(each) for method, each in rows.items()}


def test_five_seeds_of_few_groups_are_means_and_t_intervals_in_the_methods_own_look(tmp_path):
    store, accuracy = five(tmp_path, "full_precision", "nuqsgd", "alq")
    figure, remarks = drawn(store, "curves")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "test accuracy")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert list(lines(axes)) == ["full_precision", "nuqsgd", "alq"]
    for method, rows in accuracy.items():
        own = look(method)
        line = lines(axes)[method]
        assert same_color(line.get_color(), own.colour)
        assert line.get_marker() == own.marker
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
        np.testing.assert_allclose(line.get_ydata(), rows.mean(axis=0))
        low, high = share_interval(rows)
        found_low, found_high, at = bands(axes)[own.colour.lower()]
        np.testing.assert_array_equal(at, STEPS)
        np.testing.assert_allclose(found_low, low)
        np.testing.assert_allclose(found_high, high)
    assert [line.get_xdata()[0] for line in marked(axes, "learning-rate drop")] == [150, 250]
    title, entries = legend_of(figure)
    assert title == "mean and 95% interval of 5 seeds"
    assert entries == ["full_precision", "nuqsgd", "alq", "learning-rate drop"]
    assert remarks == []
    assert figure.get_figwidth() == 3.4
    assert drawn(store, "curves", width="double")[0].get_figwidth() == 7.0


def test_fewer_seeds_of_few_groups_are_a_thin_line_each_and_no_band(store):
    figure, remarks = drawn(store, "curves")
    (axes,) = figure.axes
    assert not bands(axes)
    runs = marked(axes, "run")
    assert len(runs) == 9
    for method, seeds in ACCURACY.items():
        own = [line for line in runs if same_color(line.get_color(), look(method).colour)]
        assert [tuple(line.get_ydata()) for line in own] == list(seeds.values())
        assert {line.get_linewidth() for line in own} == {0.5}
        np.testing.assert_allclose(lines(axes)[method].get_ydata(), np.mean(list(seeds.values()), axis=0))
    low, high = axes.get_ylim()
    assert low < 0.25
    assert high > 0.92  # all that is drawn
    assert legend_of(figure)[0] == "mean and, thin, each of 3 seeds"
    assert [remark[:29] for remark in remarks] == ["thin lines are single runs: i"]


def test_many_groups_are_means_with_their_interval_beside_the_last_point(tmp_path):
    store, accuracy = five(tmp_path, "full_precision", "qsgd_inf", "nuqsgd", "alq", "amq")
    figure, remarks = drawn(store, "curves")
    (axes,) = figure.axes
    assert not marked(axes, "run")
    bars = axes.containers
    at = [float(bar[0].get_xdata()[0]) for bar in bars]
    np.testing.assert_allclose(at, [300 + 200 * 0.014 * number for number in range(1, 6)])  # side by side
    assert axes.get_xlim()[1] > at[-1]
    for bar, method in zip(bars, accuracy, strict=True):
        last = accuracy[method][:, -1]
        np.testing.assert_allclose(bar[0].get_ydata(), last.mean())
        ends = np.ravel(share_interval(last[:, None]))
        np.testing.assert_allclose(bar[2][0].get_segments()[0][:, 1], ends)
    assert legend_of(figure)[0] == "mean of 5 seeds, 95% interval at the end"
    assert [remark[:46] for remark in remarks] == ["95% intervals stand at the end of lines: bands"]


def test_several_metrics_are_panels(tmp_path):
    store = FigureStore(tmp_path)
    for seed in (1, 2):
        loss = {"train/loss": {1: 2.0, 11: 1.0}, "quantizer/variance_ratio": {1: 3.0, 11: 2.0 * seed}}
        store.run("alq", seed, {"test/accuracy": at_steps((0.1, 0.5, 0.9))} | loss)
    figure, _ = drawn(store.save(), "curves", metrics=("accuracy", "train/loss", "variance_ratio"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["test accuracy", "train loss", "variance ratio"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log"]
    assert legend_of(figure) == ("mean (geometric where logarithmic) and, thin, each of 2 seeds", ["alq"])


def test_groups_of_one_method_are_shades_of_its_colour(tmp_path):
    store = FigureStore(tmp_path)
    for bits in (2, 3, 10):
        store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))}, {"quantizer.bits": bits})
    (axes,) = drawn(store.save(), "curves")[0].axes
    assert list(lines(axes)) == ["alq, bits 2", "alq, bits 3", "alq, bits 10"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 3
    assert same_color(lines(axes)["alq, bits 10"].get_color(), look("alq").colour)
    store.run("amq", 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))}, {"quantizer.bits": 2})
    (axes,) = drawn(store.save(), "curves")[0].axes
    assert list(lines(axes)) == ["alq, bits 2", "alq, bits 3", "alq, bits 10", "amq"]
    (axes,) = drawn(store, "curves", group_by=("bits",))[0].axes
    assert list(lines(axes)) == ["bits 2", "bits 3", "bits 10"]
    (axes,) = drawn(store, "curves", group_by=("quantizer.method",))[0].axes
    assert list(lines(axes)) == ["alq", "amq"]


def test_one_seed_has_a_line_and_no_band_and_unequal_seeds_are_said(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))})
    figure, _ = drawn(store.save(), "curves")
    assert not figure.axes[0].collections
    assert legend_of(figure)[0] == ""
    for seed in range(5):
        store.run("amq", seed, {"test/accuracy": at_steps((0.1 * seed, 0.5, 0.9))})
    figure, _ = drawn(store.save(), "curves")
    assert len(figure.axes[0].collections) == 1
    assert legend_of(figure)[0] == "mean and 95% interval of 1 to 5 seeds"


def test_a_value_that_is_not_finite_is_a_gap(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, math.nan, 0.9))})
    store.run("alq", 2, {"test/accuracy": at_steps((0.3, 0.5, math.inf))})
    store.run("amq", 1, {"test/accuracy": at_steps((math.nan, math.nan, math.nan))})
    figure, remarks = drawn(store.save(), "curves")
    np.testing.assert_allclose(lines(figure.axes[0])["alq"].get_ydata(), [0.2, math.nan, math.nan])
    assert remarks[:2] == [f"{name}: gaps where test/accuracy of a run is not finite" for name in ("alq", "amq")]
    assert next(plot([Recorded("known", store.uri)], Request("curves", out=tmp_path / "nan.png"))).files


def test_running_trials_are_drawn_when_asked_for(store):
    store.run("alq", 4, {"test/accuracy": {100: 0.9}}, {"schedule.decay_at": "[150, 250]"}, status="RUNNING")
    store.save()
    (axes,) = drawn(store, "curves")[0].axes
    finished = len(axes.get_lines())
    (axes,) = drawn(store, "curves", Request("curves", running=True))[0].axes
    assert len(axes.get_lines()) == finished + 1
    np.testing.assert_allclose(lines(axes)["alq"].get_ydata()[0], 0.5)  # not the running one's business


def test_runs_of_other_tools_are_not_drawn(store):
    store.run(None, 1, {"test/accuracy": at_steps((1.0, 1.0, 1.0))})
    figure, _ = drawn(store.save(), "curves")
    assert list(lines(figure.axes[0])) == ["full_precision", "nuqsgd", "alq"]


def test_smoothing_is_said_and_done_run_by_run(store):
    figure, _ = drawn(store, "curves", smooth=3)
    assert figure.axes[0].get_ylabel() == "test accuracy\n(mean of 3 points)"
    first = np.mean([np.mean(values[:2]) for values in ACCURACY["alq"].values()])
    np.testing.assert_allclose(lines(figure.axes[0])["alq"].get_ydata()[0], first)
    bare = smoothed(history([0, 1, 2, 3], [1.0, math.nan, 3.0, 5.0], [0] * 4), 3)
    np.testing.assert_allclose(bare.values, [1.0, math.nan, 4.0, 4.0])


def test_seeds_meet_at_shared_steps_or_between_their_points():
    def run(steps, values):
        return history(steps, values, [0] * len(steps))

    shared = across([run([1, 2, 3], [1, 2, 3]), run([1, 2], [3, 4])])
    assert (shared.x.tolist(), shared.mean.tolist(), shared.cut, shared.runs) == ([1, 2], [2, 3], True, 2)
    between = across([run([0, 10, 20], [0, 10, 20]), run([5, 15, 25, 35], [5, 15, 25, 35])])
    assert between.x.tolist() == [5, 10, 15, 20]
    np.testing.assert_allclose(between.mean, [5, 10, 15, 20])
    assert len(across([run([0, 1], [0, 0]), run([5, 6], [0, 0])])) == 0
    assert len(across([])) == 0
    logs = across([run([1], [1e-4]), run([1], [1e-2])], logarithmic=True)
    np.testing.assert_allclose(logs.mean, [1e-3])
    low, high = stats.t.interval(0.95, 1, -3, stats.sem([-4, -2]))
    np.testing.assert_allclose([logs.low[0], logs.high[0]], [10**low, 10**high])


def test_drops_of_a_schedule_in_epochs_and_of_one_that_falls_evenly(tmp_path):
    store = FigureStore(tmp_path)
    epochs = {"schedule.epochs": 3, "schedule.decay_every": 1}
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.2, 0.3))}, epochs)
    store.run("amq", 1, {"test/accuracy": at_steps((0.1, 0.2, 0.3))}, {"schedule.decay": "cosine"})
    (axes,) = drawn(store.save(), "curves")[0].axes
    assert [line.get_xdata()[0] for line in marked(axes, "learning-rate drop")] == [100, 200]


def test_a_thousand_runs_in_two_hundred_groups(tmp_path):
    store = FigureStore(tmp_path)
    for index in range(1000):
        method = ("full_precision", "qsgd_inf", "nuqsgd", "alq", "amq")[index % 5]
        metrics = {"test/accuracy": at_steps((0.1, 0.5, 0.8 + index % 7 / 100))}
        store.run(method, index // 200, metrics, {"optimizer.lr": index // 5 % 40})
    figure, _ = drawn(store.save(), "curves")
    (axes,) = figure.axes
    assert len(lines(axes)) == 200
    _, entries = legend_of(figure)
    assert len(entries) == MOST_IN_LEGEND
    assert entries[-1] == f"and {200 - MOST_IN_LEGEND + 1} more"
    assert figure.get_figheight() < 6
    figure, _ = drawn(store, "curves", group_by=("method",))
    assert list(lines(figure.axes[0])) == ["full_precision", "qsgd_inf", "nuqsgd", "alq", "amq"]
