"""Performance profiles of costs that are known."""

import math

import pytest

from lqray.reporting.figures.profile import profile
from lqray.reporting.figures.recordings import NothingToDrawError
from lqray.reporting.plot import Request
from lqray.reporting.selection import UnknownKeyError
from lqray.reporting.targets import TargetError
from tests.testing.drawn_figures import at_steps, drawn, legend_of, lines, plotted
from tests.testing.figure_stores import FigureStore

VALUES = {"bf16": (0.5, 0.80, 0.9), "alq": (0.5, 0.80, 0.9), "qsgd": (0.89, 0.7, 0.7)}


def filled(folder, bytes_a_step, values=VALUES):
    """By (experiment, method), bytes a step; evaluations after 100, 200 and 300 steps, and a tenth of a second each
    step. The data are named by the experiment, and their learning rate follows from them."""
    store = FigureStore(folder, *dict.fromkeys(name for name, _ in bytes_a_step))
    for (experiment, method), each in bytes_a_step.items():
        for seed in (1, 2):
            metrics = {
                "test/accuracy": at_steps(values[method]),
                "wire/total_bytes_sent": at_steps((100 * each, 200 * each, 300 * each)),
                "time/training_seconds": at_steps((10.0, 20.0, 30.0)),
            }
            params = {"data.name": experiment, "optimizer.lr": len(experiment)}
            store.run(method, seed, metrics, params, experiment=experiment)
    return store.save()


COSTS = {
    ("digits", "bf16"): 160,
    ("digits", "alq"): 40,
    ("digits", "qsgd"): 30,
    ("letters", "bf16"): 160,
    ("letters", "alq"): 320,
    ("letters", "qsgd"): 480,
    ("images", "bf16"): 100,
    ("images", "alq"): 50,
}


def test_steps_are_at_the_ratios_and_a_line_ends_where_what_is_not_there_begins():
    assert profile([1.0, 4.0, 2.0, math.inf]) == ([1.0, 1.0, 2.0, 4.0], [0.25, 0.25, 0.5, 0.75])
    assert profile([math.inf]) == ([1.0], [0.0])


def test_shares_by_hand(tmp_path):
    """At 0.75 after 200 steps, qsgd after 100: digits 32, 8 and 3 kB, letters 32, 64 and 48 kB, images 20 and 10 kB."""
    figure, remarks = drawn(filled(tmp_path, COSTS), "profile", target=0.75)
    (axes,) = figure.axes
    found = {label: (line.get_xdata()[:-1], line.get_ydata()[:-1]) for label, line in lines(axes).items()}
    expected = {
        "bf16": ([1, 1, 2, 32 / 3], [1 / 3, 1 / 3, 2 / 3, 1]),
        "alq": ([1, 1, 2, 8 / 3], [1 / 3, 1 / 3, 2 / 3, 1]),
        "qsgd": ([1, 1, 1.5], [1 / 3, 1 / 3, 2 / 3]),
    }
    assert found.keys() == expected.keys()
    for label, (x, y) in expected.items():
        assert list(found[label][0]) == pytest.approx(x)
        assert list(found[label][1]) == pytest.approx(y)
        assert lines(axes)[label].get_ydata()[-1] == pytest.approx(y[-1])
    assert lines(axes)["qsgd"].get_drawstyle() == "steps-post"
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "bytes sent to the target, by the least")
    assert legend_of(figure)[0] == "3 workloads, target: accuracy of 75.00%"
    assert remarks == ["qsgd: not at the target of 1 of 3 workloads, or not run"]


def test_the_target_is_what_the_baseline_is_within_a_percent_of(tmp_path):
    """bf16 ends at 0.9: the target is 0.891, which alq reaches after 300 steps, and qsgd, at 0.89, does not."""
    figure, remarks = drawn(filled(tmp_path, COSTS), "profile")
    found = lines(figure.axes[0])
    assert list(found["bf16"].get_xdata()[:-1]) == pytest.approx([1, 1, 2, 4])
    assert list(found["alq"].get_xdata()[:-1]) == pytest.approx([1, 1, 1, 2])
    assert list(found["qsgd"].get_ydata()) == [0, 0]
    assert legend_of(figure)[0] == "3 workloads, target: accuracy within 1% of bf16's"
    assert remarks == ["qsgd: not at the target of 3 of 3 workloads, or not run"]
    figure, _ = drawn(filled_again(tmp_path), "profile", baseline="qsgd")
    assert "of qsgd's" in legend_of(figure)[0]


def filled_again(folder):
    (folder / "other").mkdir()
    return filled(folder / "other", {key: each for key, each in COSTS.items() if key[0] == "digits"})


def test_of_a_loss_the_target_is_a_percent_above(tmp_path):
    store = FigureStore(tmp_path)
    text = {"task.name": "language_modelling", "data.name": "text"}
    for method, values, each in (("bf16", (3.0, 2.02, 2.0), 10), ("alq", (2.5, 2.021, 2.02), 5)):
        total = {"wire/total_bytes_sent": at_steps((100 * each, 200 * each, 300 * each))}
        store.run(method, 1, {"test/loss": at_steps(values)} | total, text)
    figure, _ = drawn(store.save(), "profile")  # at 2.02: bf16 after 200 steps, alq after 300
    assert list(lines(figure.axes[0])["bf16"].get_xdata()[:-1]) == pytest.approx([1, 2000 / 1500])


def test_each_workload_is_judged_by_its_own_headline(tmp_path):
    """digits by accuracy, text by a loss that falls: of each, alq takes a half of bf16's bytes."""
    store = FigureStore(tmp_path, "digits", "text")
    text = {"task.name": "language_modelling", "data.name": "text"}
    for method, each in (("bf16", 10), ("alq", 5)):
        total = {"wire/total_bytes_sent": at_steps((100 * each, 200 * each, 300 * each))}
        for metric, values, experiment in (("accuracy", (0.1, 0.5, 0.9), "digits"), ("loss", (3.0, 2.0, 1.0), "text")):
            params = text if experiment == "text" else {"data.name": "digits"}
            store.run(method, 1, {f"test/{metric}": at_steps(values)} | total, params, experiment=experiment)
    figure, remarks = drawn(store.save(), "profile")
    assert list(lines(figure.axes[0])["alq"].get_ydata()) == pytest.approx([1, 1, 1, 1])
    assert list(lines(figure.axes[0])["bf16"].get_xdata()[:-1]) == pytest.approx([1, 2, 2])
    assert legend_of(figure)[0] == "2 workloads, target: accuracy or loss within 1% of bf16's"
    assert remarks == []


def test_workloads_have_baselines_of_their_own(tmp_path):
    bytes_a_step = {("digits", "full_precision"): 320, ("digits", "alq"): 40, ("letters", "bf16"): 160}
    bytes_a_step |= {("letters", "alq"): 80, ("images", "qsgd"): 10, ("images", "alq"): 10}
    values = VALUES | {"full_precision": VALUES["bf16"]}
    figure, remarks = drawn(filled(tmp_path, bytes_a_step, values), "profile")
    assert list(lines(figure.axes[0])["alq"].get_ydata()) == [1, 1, 1, 1]
    assert (
        "workloads left out that have no finished run of a baseline: 1; give --target, or --baseline METHOD" in remarks
    )
    assert not any("no run of known cost" in one for one in remarks)
    assert legend_of(figure)[0] == "2 workloads, target: accuracy within 1% of bf16 or full_precision's"


def test_other_costs_and_a_single_workload(tmp_path):
    store = filled_again(tmp_path)
    for of, name in (("seconds", "seconds"), ("steps", "steps")):
        figure, remarks = drawn(store, "profile", target=0.75, of=of)
        assert list(lines(figure.axes[0])["bf16"].get_xdata()[:-1]) == pytest.approx([1, 2])
        assert figure.axes[0].get_xlabel() == f"{name} to the target, by the least"
    assert remarks == ["of a single workload: each method is a step from 0 to 1; name several experiments"]
    assert legend_of(figure)[0] == "1 workload, target: accuracy of 75.00%"


def test_groups_of_which_some_runs_reached_it_say_so(tmp_path):
    store = FigureStore(tmp_path)
    for method, seed, last in (("bf16", 1, 0.9), ("bf16", 2, 0.9), ("alq", 1, 0.9), ("alq", 2, 0.5)):
        total = {"wire/total_bytes_sent": at_steps((100.0, 200.0, 300.0))}
        store.run(method, seed, {"test/accuracy": at_steps((0.1, 0.2, last))} | total)
    _, remarks = drawn(store.save(), "profile", target=0.8)
    assert "alq: 1 of 2 runs of a workload reached its target; these count" in remarks


def test_errors_teach(tmp_path):
    store = filled(tmp_path, {key: each for key, each in COSTS.items() if key[1] != "bf16"})
    with pytest.raises(NothingToDrawError, match="give --target, or --baseline METHOD"):
        drawn(store, "profile")
    with pytest.raises(NothingToDrawError, match="no run reached the target with bytes sent"):
        drawn(store, "profile", target=0.99)
    with pytest.raises(TargetError, match="did you mean 0.75"):
        drawn(store, "profile", target=75)
    with pytest.raises(UnknownKeyError, match="did you mean 'alq'"):
        drawn(store, "profile", baseline="alqq")
    with pytest.raises(NothingToDrawError, match="a profile compares methods: found 1"):
        drawn(store, "profile", Request("profile", only=("alq*",)), target=0.75)
    done = plotted(store, "digits", "--kind", "curves", "--of", "steps")
    assert (done.exit_code, "allowed: with profile" in done.stderr) == (2, True)


def test_the_command_draws_several_experiments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = filled(tmp_path, COSTS)
    options = ("--kind", "profile", "--target", "0.75", "--of", "steps", "--format", "svg")
    done = plotted(store, "digits", "letters", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == "figures/digits+letters-profile.svg\n"
