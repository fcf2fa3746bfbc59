"""Bytes to an accuracy, and where the time of a step goes."""

import numpy as np
import pytest
from scipy import stats

from lqray.reporting.figures.sent import readable
from tests.testing.drawn_figures import at_steps, drawn, legend_of, lines, marked
from tests.testing.figure_stores import FigureStore


def test_bytes_are_those_recorded_or_else_bytes_per_step_times_steps(tmp_path):
    store = FigureStore(tmp_path)
    values = (0.3, 0.8, 0.95)
    total = {"wire/total_bytes_sent": at_steps((1000.0, 2100.0, 3300.0)), "wire/bytes_sent": {1: 99.0}}
    store.run("alq", 1, {"test/accuracy": at_steps(values)} | total)
    store.run("full_precision", 1, {"test/accuracy": at_steps(values), "wire/bytes_sent": {1: 90.0, 11: 110.0}})
    store.run("sgd", 1, {"test/accuracy": at_steps(values), "wire/bytes_sent": {1: 0.0}})
    figure, remarks = drawn(store.save(), "bytes_to_accuracy", target=0.8)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(lines(axes)["alq"].get_xdata(), [1000, 2100, 3300])
    np.testing.assert_allclose(lines(axes)["full_precision"].get_xdata(), [10_000, 20_000, 30_000])
    assert remarks == ["left out, for they send nothing, or have not recorded it: sgd"]
    assert [line.get_ydata()[0] for line in marked(axes, "target")] == [0.8]
    assert sorted(line.get_xdata()[0] for line in marked(axes, "reached")) == [2100, 20_000]
    assert legend_of(figure)[1] == ["full_precision (20 kB)", "alq (2.1 kB)"]
    figure, _ = drawn(store, "bytes_to_accuracy", target=0.99)
    assert legend_of(figure)[1] == ["full_precision (not reached)", "alq (not reached)"]


def test_runs_and_whiskers_are_at_their_own_bytes(tmp_path):
    store = FigureStore(tmp_path)
    for seed in (1, 2):
        sent = {"wire/total_bytes_sent": at_steps((100.0 * seed, 200.0 * seed, 400.0 * seed))}
        store.run("alq", seed, {"test/accuracy": at_steps((0.2 * seed, 0.3, 0.4))} | sent)
    (axes,) = drawn(store.save(), "bytes_to_accuracy")[0].axes
    assert [line.get_xdata().tolist() for line in marked(axes, "run")] == [[100, 200, 400], [200, 400, 800]]
    for method in ("amq", "nuqsgd", "qsgd_inf", "terngrad"):
        for seed in (1, 2):
            sent = {"wire/total_bytes_sent": at_steps((100.0, 200.0, 1000.0))}
            store.run(method, seed, {"test/accuracy": at_steps((0.2, 0.3, 0.4 + 0.1 * seed))} | sent)
    (axes,) = drawn(store.save(), "bytes_to_accuracy")[0].axes
    step = 10**0.014  # a decade, from 100 to 1000
    found = sorted(float(bar[0].get_xdata()[0]) for bar in axes.containers)
    np.testing.assert_allclose(found, [600 * step, *(1000 * step**number for number in range(1, 5))])
    assert axes.get_xlim()[1] > found[-1]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1_234_567, "1.23 MB"), (5e15, "5 PB")]
)
def test_bytes_have_units(count, text):
    assert readable(count) == text


def test_throughput_is_the_phases_side_by_side(tmp_path):
    store = FigureStore(tmp_path)
    phases = {"data": 1e-3, "forward": 2e-3, "backward": 6e-3, "optimizer": 1e-3}
    phases |= {"encode": 1e-3, "exchange": 2e-3, "decode": 1e-3}
    for seed in (1, 2, 3):
        metrics = {
            f"time/{phase}_seconds": {1: 9.0, 11: value * seed, 21: value * seed} for phase, value in phases.items()
        }
        store.run("alq", seed, metrics | {"time/seconds_per_step": 9e-3 * seed})
    figure, _ = drawn(store.save(), "throughput")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "milliseconds per step"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["alq"]
    starts = [(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in axes.patches]
    assert starts[:3] == [(0, 2), (2, 4), (6, 12)]
    assert sorted(starts[3:-1]) == [(10, 2), (12, 4), (16, 2)]  # ends where the backward phase does
    assert starts[-1] == (18, 2)
    (diamond,) = [line for line in axes.get_lines() if line.get_marker() == "D"]
    assert diamond.get_xdata() == [18]
    title, entries = legend_of(figure)
    assert title == "mean of 3 seeds"
    assert entries[-2:] == ["95% interval of the phases' sum", "whole step, where phases are not measured"]
    (error,) = [one for one in axes.containers if len(one) == 3]
    _, high = stats.t.interval(0.95, 2, 20, stats.sem([10, 20, 30]))
    np.testing.assert_allclose(error[2][0].get_segments()[0][:, 0], [0, high], atol=1e-9)


def test_an_exchange_that_takes_longer_than_the_backward_phase_is_shown_whole(tmp_path):
    store = FigureStore(tmp_path)
    phases = {"forward": 0.1, "backward": 0.2, "encode": 0.1, "exchange": 1.0, "decode": 0.1}
    store.run("eden", 1, {f"time/{phase}_seconds": {1: value, 11: value} for phase, value in phases.items()})
    (axes,) = drawn(store.save(), "throughput")[0].axes
    within = sorted(
        (round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in axes.patches if bar.get_height() < 0.3
    )
    assert within == [(0, 0.1), (0.1, 1.0), (1.1, 0.1)]
    assert axes.get_xlim()[1] > 1.2
