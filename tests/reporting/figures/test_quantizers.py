"""What quantizers do, as figures: variance, levels, density."""

import json
import math

import numpy as np
from matplotlib.colors import same_color
from mlflow import MlflowClient

from lqray.reporting.figures.density import draw_density
from lqray.reporting.methods import look
from lqray.reporting.plot import Request
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


def series(steps, values, name="quantizer/level"):
    """`levels.json` of levels that never stay."""
    return json.dumps({"every": 1, "series": {name: {"steps": steps, "rows": [*range(len(steps))], "values": values}}})


def test_levels_are_drawn_from_the_artifact_the_metrics_or_one_after_the_other(tmp_path):
    """Of the run that an earlier version began, the artifact begins at 11; what the version measured there before it
    was stopped was measured again."""
    store = FigureStore(tmp_path)
    before = {f"quantizer/level/{j}": {1: value, 11: 0.9} for j, value in enumerate((-1.0, 0.25, 1.0))}
    run_ids = {
        "alq": store.run("alq", 1),
        "amq": store.run("amq", 1, before),
        "terngrad": store.run("terngrad", 1, {f"quantizer/level/{j}": {1: j - 1.0, 11: j - 1.0} for j in range(3)}),
        "nuqsgd": store.run("nuqsgd", 1, status="RUNNING"),
    }
    store.save()
    client = MlflowClient(store.uri)
    rows = [[-1.0, 0.25, 1.0], [-1.0, 0.5, 1.0]]
    client.log_text(run_ids["alq"], series([1, 11], rows), "levels.json")
    client.log_text(run_ids["amq"], series([11], [rows[1]]), "levels.json")
    client.log_text(run_ids["nuqsgd"], "{", "levels.json")
    figure, remarks = drawn(store, "levels", Request("levels", running=True))
    found = {
        axes.get_title(): [line.get_ydata().tolist() for line in axes.get_lines() if line.get_gid() is None]
        for axes in figure.axes
    }
    assert found == {
        "alq": [[-1, -1], [0.25, 0.5], [1, 1]],
        "amq": [[-1, -1], [0.25, 0.5], [1, 1]],
        "terngrad": [[-1, -1], [0, 0], [1, 1]],
    }
    assert any(f"left out: levels.json of run {run_ids['nuqsgd']}" in one for one in remarks)


def test_levels_of_several_compressors_in_an_artifact_are_a_panel_each(tmp_path):
    store = FigureStore(tmp_path)
    run_id = store.run("alq", 1)
    names = ("quantizer/shared/level", "quantizer/layer/0.weight/level", "quantizer/shared/slope")
    document = {name: json.loads(series([1, 11], [[-1.0, 1.0]] * 2, name))["series"][name] for name in names}
    store.save()
    MlflowClient(store.uri).log_text(run_id, json.dumps({"series": document}), "levels.json")
    figure, _ = drawn(store, "levels")
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes] == ["alq, layer/0.weight", "alq, shared"]


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
    second_run = store.run("amq", 1)
    store.save()
    client = MlflowClient(store.uri)
    client.log_text(first_run, json.dumps(SNAPSHOT), "density.json")
    client.log_text(second_run, series([1], [SNAPSHOT["levels"]]), "levels.json")
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
