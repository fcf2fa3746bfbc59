"""Final values against bytes a step: points, lines over `exchange.every`, the frontier, full precision."""

import math

import numpy as np
import pytest
from scipy import stats

from lqray.reporting.figures.loss_to_bytes import frontier
from tests.testing.drawn_figures import drawn, legend_of, marked, plotted
from tests.testing.figure_stores import FigureStore

TEXT = {"data.name": "text"}


def bars(axes):
    """By label, the line of an error bar's points."""
    return {one.get_label(): one for one in axes.containers}


def sweep(folder):
    """float32 DDP, full precision every 5 steps, EDEN at 2 and 3 bits; two seeds."""
    store = FigureStore(folder)
    finals = {
        ("full_precision", None, None): (40_000.0, 2.0),
        ("full_precision", None, 5): (8000.0, 2.1),
        ("eden", 2, None): (2500.0, 2.05),
        ("eden", 2, 5): (500.0, 2.4),
        ("eden", 2, 30): (83.0, 2.6),
        ("eden", 3, 5): (750.0, 2.5),
    }
    for (method, bits, every), (sent, loss) in finals.items():
        for seed in (1, 2):
            params = TEXT | {"exchange.every": "null" if every is None else every}
            params |= {} if bits is None else {"quantizer.bits": bits}
            metrics = {"test/loss": {300: loss + 0.01 * seed}, "wire/total_bytes_sent": {100: 1.0, 300: 300 * sent}}
            store.run(method, seed, metrics, params)
    return store.save()


def test_a_line_joins_trials_that_differ_in_how_seldom_they_exchange(tmp_path):
    store = sweep(tmp_path)
    figure, remarks = drawn(store, "loss_to_bytes")
    assert not remarks
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "sent by one process per step"
    assert axes.get_ylabel() == "test loss"
    found = bars(axes)
    assert list(found) == ["full_precision", "eden, bits 2", "eden, bits 3"]
    np.testing.assert_allclose(found["eden, bits 2"][0].get_xdata(), [2500, 500, 83])
    np.testing.assert_allclose(found["eden, bits 2"][0].get_ydata(), [2.065, 2.415, 2.615])
    assert len({container[0].get_color() for container in found.values()}) == 3
    whisker = found["eden, bits 3"][2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(whisker, stats.t.interval(0.95, 1, 2.515, stats.sem([2.51, 2.52])))
    said = sorted(text.get_text() for text in axes.texts)
    assert said == ["DDP", "DDP", "H=30", "H=5", "H=5", "H=5"]
    title, entries = legend_of(figure)
    assert title == "mean and 95% interval of 2 seeds"
    assert entries[3:] == ["best with as few bytes", "within 1% of float32 DDP (40 kB per step)"]


def test_the_frontier_and_full_precision_are_marked(tmp_path):
    figure, _ = drawn(sweep(tmp_path), "loss_to_bytes")
    (axes,) = figure.axes
    (line,) = marked(axes, "frontier")
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_allclose(line.get_xdata()[:-1], [83, 500, 2500, 40_000])
    np.testing.assert_allclose(line.get_ydata()[:-1], [2.615, 2.415, 2.065, 2.015])
    assert [one.get_xdata()[0] for one in marked(axes, "full precision")] == [40_000]
    (band,) = [patch for patch in axes.patches if patch.get_gid() == "near"]
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [0.99 * 2.015, 1.01 * 2.015])


@pytest.mark.parametrize(
    ("higher", "best"), [(False, [(1, 5), (2, 3), (9, 1)]), (True, [(1, 5), (3, 6)])]
)  # of the two at 2 bytes one is worse than what one byte buys
def test_a_point_is_on_the_frontier_where_fewer_bytes_buy_less(higher, best):
    assert frontier([(3, 6), (2, 3), (1, 5), (2, 4), (9, 1), (9, 2), (4, 6)], higher) == best


def test_trials_without_every_are_points_of_their_headline(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": {300: 0.8}, "wire/bytes_sent": {1: 90.0, 11: 110.0}})
    store.run("qsgd", 1, {"test/accuracy": {300: 0.7}, "wire/bytes_sent": {1: 100.0, 11: 120.0}})
    store.run("bf16", 1, {"test/accuracy": {300: math.nan}, "wire/bytes_sent": {1: 100.0}})
    store.run("sgd", 1, {"test/accuracy": {300: 0.5}, "wire/bytes_sent": {1: 0.0}})
    figure, remarks = drawn(store.save(), "loss_to_bytes")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "test accuracy"
    figure.draw_without_rendering()
    assert [text.get_text() for text in axes.get_xticklabels() if 80 < text.get_position()[0] < 120] == ["100 B"]
    assert not any(text.get_text() for text in axes.get_xticklabels(minor=True))
    assert not axes.texts
    assert not marked(axes, "full precision")
    found = bars(axes)
    np.testing.assert_allclose([found[name][0].get_xdata()[0] for name in ("alq", "qsgd")], [100, 110])
    np.testing.assert_allclose(marked(axes, "frontier")[0].get_ydata(), [0.8, 0.8])  # QSGD sends more, and is worse
    assert remarks == [
        "sgd: 1 runs are left out, for they send nothing, or have not recorded it",
        "bf16: 1 runs are left out, whose test/accuracy is missing or not finite",
    ]


def test_what_sends_nothing_is_an_error_that_says_what_to_do(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": {300: 0.8}, "wire/total_bytes_sent": {300: 0.0}})
    done = plotted(store.save(), "known", "--kind", "loss_to_bytes")
    assert done.exit_code == 2
    assert "no trial that has sent anything has recorded wire/total_bytes_sent" in " ".join(done.stderr.split())
    assert "set resources.processes" in " ".join(done.stderr.split())


def test_it_is_written_like_all_figures(tmp_path):
    done = plotted(sweep(tmp_path), "known", "--kind", "loss_to_bytes", "--out", str(tmp_path / "drawn"))
    assert done.exit_code == 0, done.output
    names = sorted(file.name for file in (tmp_path / "drawn").iterdir())
    assert names == [f"known-loss_to_bytes.{ending}" for ending in ("pdf", "png", "svg")]
