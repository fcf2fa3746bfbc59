"""Final values against an axis of the sweep: bits, bucket size."""

import math

import numpy as np
import pytest

from lqray.reporting.figures.recordings import NothingToDrawError
from tests.testing.drawn_figures import at_steps, drawn, legend_of, lines, plotted
from tests.testing.figure_stores import FigureStore
from tests.testing.reports import share_interval


@pytest.mark.parametrize(
    ("kind", "key", "values", "texts"),
    [
        ("bits", "quantizer.bits", (2, 3, 4), ["2", "3", "4"]),
        ("bucket_size", "quantizer.bucket_size", (64, 8192), ["$2^{6}$", "$2^{13}$"]),
    ],
)
def test_final_accuracy_against_an_axis(tmp_path, kind, key, values, texts):
    store = FigureStore(tmp_path)
    finals = {}
    for index, value in enumerate(values):
        for seed in (1, 2, 3):
            finals.setdefault(value, []).append(0.8 + 0.05 * index + 0.01 * seed * (index + 1))
            store.run("alq", seed, {"test/accuracy": at_steps((0.1, 0.2, finals[value][-1]))}, {key: value})
    for seed in (1, 2, 3):
        store.run("full_precision", seed, {"test/accuracy": 0.9 + 0.01 * seed})
    figure, _ = drawn(store.save(), kind)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == texts
    (level,) = [one for one in axes.containers if len(one[0].get_xdata()) == 1]  # a whisker at the end, not a band
    np.testing.assert_allclose(level[2][0].get_segments()[0][:, 1], share_interval([0.91, 0.92, 0.93]))
    assert not axes.patches
    (bars,) = [one for one in axes.containers if one is not level]
    np.testing.assert_allclose(bars[0].get_xdata(), values, rtol=0.15)  # aside, but nearer to their own tick
    np.testing.assert_allclose(bars[0].get_ydata(), [np.mean(finals[value]) for value in values])
    segments = bars[2][0].get_segments()
    for value, segment in zip(values, segments, strict=True):
        np.testing.assert_allclose(segment[:, 1], share_interval(finals[value]))
    (level,) = [line for label, line in lines(axes).items() if label == "full_precision"]
    np.testing.assert_allclose(level.get_ydata(), [0.92, 0.92])
    assert legend_of(figure) == ("mean and 95% interval of 3 seeds", ["full_precision", "alq"])


def test_runs_that_end_in_nan_are_left_out_of_finals_and_counted(tmp_path):
    store = FigureStore(tmp_path)
    for bits in (2, 3):
        store.run("alq", 1, {"test/accuracy": 0.5}, {"quantizer.bits": bits})
        store.run("alq", 2, {"test/accuracy": math.nan}, {"quantizer.bits": bits})
    figure, remarks = drawn(store.save(), "bits")
    np.testing.assert_allclose(figure.axes[0].containers[0][0].get_ydata(), [0.5, 0.5])
    assert remarks == ["alq: 2 runs are left out, whose test/accuracy is missing or not finite"]
    store.run("amq", 1, {"test/loss": 0.5}, {"quantizer.bits": 2})
    figure, _ = drawn(store.save(), "bits", metrics=("test/loss",))
    np.testing.assert_allclose(figure.axes[0].containers[0][0].get_ydata(), [0.5])


def test_an_axis_that_does_not_vary_is_an_error_that_says_how_to_get_it(store):
    with pytest.raises(NothingToDrawError, match=r"no finished trial has it; sweep it, as experiments/bits.yaml does"):
        drawn(store, "bits")
    done = plotted(store, "known", "--kind", "bucket_size")
    assert done.exit_code == 2
    assert "quantizer.bucket_size does not vary" in done.stderr
    assert "Traceback" not in done.output


def test_several_experiments_are_drawn_together(tmp_path):
    store = FigureStore(tmp_path, "first", "second")
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.2, 0.3))}, {"quantizer.bits": 2}, experiment="first")
    store.run("alq", 1, {"test/accuracy": at_steps((0.3, 0.4, 0.5))}, {"quantizer.bits": 4}, experiment="second")
    store.save()
    figure, _ = drawn(store, "bits")
    np.testing.assert_allclose(figure.axes[0].containers[0][0].get_ydata(), [0.3, 0.5])
    done = plotted(store, "first", "second", "--kind", "curves", "--out", str(tmp_path / "two"), "--format", "svg")
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["first+second-curves.svg"], done.output
