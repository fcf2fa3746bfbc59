"""What quantizers do, as figures: variance, levels, density."""

import json
import math

import numpy as np
from matplotlib.colors import same_color
from mlflow import MlflowClient

from lqray.reporting.figures.density import draw_density
from lqray.reporting.methods import look
from tests.testing.drawn_figures import drawn, legend_of, lines, marked
from tests.testing.figure_stores import FigureStore


def test_variance_is_logarithmic_and_full_precision_shows_its_own(tmp_path):
    store = FigureStore(tmp_path)
    for seed in (1, 2):
        store.run("full_precision", seed, {"quantizer/gradient_variance": {1: 1e-4 * seed, 11: 1e-5}})
        quantized = {1: 1e-3, 11: 4e-4 * seed}
        store.run(
            *("alq", seed),
            {
                "quantizer/gradient_variance": {1: 1e-4, 11: 1e-5},
                "quantizer/quantized_variance": quantized,
                "quantizer/variance_ratio": {1: 10.0, 11: 40.0 * seed},
            },
        )
    store.run("fp16", 1, {"test/accuracy": 0.9})
    figure, remarks = drawn(store.save(), "variance")
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "variance of the gradient"
    np.testing.assert_allclose(lines(axes)["full_precision"].get_ydata(), [math.sqrt(2) * 1e-4, 1e-5])
    np.testing.assert_allclose(lines(axes)["alq"].get_ydata(), [1e-3, math.sqrt(2) * 4e-4])
    assert legend_of(figure)[0].startswith("geometric mean")
    assert remarks[0] == "left out, for they have none of it: fp16"
    figure, remarks = drawn(store, "variance", metrics=("variance_ratio",))
    assert list(lines(figure.axes[0])) == ["alq"]
    assert "quantized / exact" in figure.axes[0].get_ylabel()


def test_levels_are_a_panel_for_each_method(tmp_path):
    store = FigureStore(tmp_path)
    for method, levels in {"alq": (-1.0, -0.02, 0.05, 1.0), "terngrad": (-1.0, 0.0, 1.0)}.items():
        for seed in (1, 2):
            metrics = {
                f"quantizer/level/{j}": {1: value, 11: value * (1 if abs(value) == 1 else seed)}
                for j, value in enumerate(levels)
            }
            store.run(method, seed, metrics, {"schedule.decay_at": "[5]"})
    store.run("full_precision", 1, {"test/accuracy": 0.5})
    figure, _ = drawn(store.save(), "levels")
    assert [axes.get_title() for axes in figure.axes] == ["terngrad", "alq"]
    ternary, alq = figure.axes
    assert {axes.get_yscale() for axes in figure.axes} == {"symlog"}
    found = [line.get_ydata().tolist() for line in alq.get_lines() if line.get_gid() is None]
    np.testing.assert_allclose(found, [[-1, -1], [-0.02, -0.03], [0.05, 0.075], [1, 1]])
    assert all(same_color(line.get_color(), look("alq").colour) for line in alq.get_lines() if line.get_gid() is None)
    assert len([line for line in ternary.get_lines() if line.get_gid() is None]) == 3
    assert len(marked(alq, "learning-rate drop")) == 1
    assert len(marked(alq, "run")) == 2 * len(found)
    assert legend_of(figure)[0] == "mean and each of 2 seeds"


def test_levels_of_several_compressors_are_a_panel_each(tmp_path):
    store = FigureStore(tmp_path)
    metrics = {
        f"quantizer/{name}/level/{j}": {1: j, 11: j} for name in ("shared", "layer/0.weight") for j in (-1, 0, 1)
    }
    store.run("alq", 1, {key.replace("-1", "2"): value for key, value in metrics.items()}, {"schedule.decay_at": "[5]"})
    figure, _ = drawn(store.save(), "levels")
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes] == ["alq, layer/0.weight", "alq, shared"]
    for axes in figure.axes:
        assert len([line for line in axes.get_lines() if line.get_gid() is None]) == 3
        assert len(marked(axes, "learning-rate drop")) == 1


SNAPSHOT = {
    "method": "alq",
    "bits": 2,
    "norm": "l2",
    "bucket_size": 8,
    "iteration": 10,
    "levels": [-1.0, -0.01, 0.01, 1.0],
    "edges": [-1.0, -1e-3, 0.0, 1e-3, 1.0],
    "density": [0.1, 400.0, 500.0, 0.0],
}


def test_density_shows_levels_over_the_density(tmp_path):
    figure = draw_density([("alq", SNAPSHOT), ("amq", SNAPSHOT | {"method": "amq", "levels": [-1.0, 1.0]})])
    first, second = figure.axes
    assert (first.get_xscale(), first.get_yscale(), first.get_title()) == ("symlog", "log", "alq")
    assert [line.get_xdata()[0] for line in marked(first, "level")] == SNAPSHOT["levels"]
    assert same_color(marked(second, "level")[0].get_color(), look("amq").colour)
    (stairs,) = first.patches
    np.testing.assert_allclose(stairs.get_data().edges, SNAPSHOT["edges"])
    np.testing.assert_allclose(stairs.get_data().values, [0.1, 400.0, 500.0, math.nan])

    assert not marked(first, "zeros")  # of a run that did not count them

    store = FigureStore(tmp_path)
    levels = {f"quantizer/level/{j}": level for j, level in enumerate(SNAPSHOT["levels"])}
    first_run = store.run("alq", 1, levels)
    store.run("amq", 1, levels)
    store.save()
    MlflowClient(store.uri).log_text(first_run, json.dumps(SNAPSHOT), "density.json")
    figure, remarks = drawn(store, "density")
    assert [axes.get_title() for axes in figure.axes] == ["alq"]
    assert remarks == ["left out, for it has no density.json: amq"]


def test_exact_zeros_are_a_mark_with_their_share_and_no_density():
    """Of the bin from 0 to 1e-3, which holds half of all, 38% are exactly 0: 12% are left, 120 a unit."""
    some, all_of_it = draw_density(
        [("alq", SNAPSHOT | {"zeros": 0.38}), ("amq", SNAPSHOT | {"zeros": 0.5, "method": "amq"})]
    ).axes
    np.testing.assert_allclose(some.patches[0].get_data().values, [0.1, 400.0, 120.0, math.nan])
    np.testing.assert_allclose(all_of_it.patches[0].get_data().values, [0.1, 400.0, math.nan, math.nan])
    for panel, share in ((some, "38%"), (all_of_it, "50%")):
        assert [line.get_xdata()[0] for line in marked(panel, "zeros")] == [0.0]
        assert [text.get_text() for text in panel.texts] == [share]
    assert legend_of(some.figure)[1][-1] == "coordinates that are exactly 0"
