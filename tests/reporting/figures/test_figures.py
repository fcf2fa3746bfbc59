"""`lqray plot` draws what is recorded: structure, numbers, files, and what it says where it cannot."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import same_color, to_hex
from mlflow import MlflowClient
from scipy import stats

from lqray.cli import main
from lqray.experiment.names import methods
from lqray.reporting.figures import kinds, load_kind
from lqray.reporting.figures.bytes_to_accuracy import readable
from lqray.reporting.figures.density import draw_density
from lqray.reporting.figures.recordings import NothingToDrawError, Options
from lqray.reporting.figures.seeds import across, smoothed
from lqray.reporting.figures.style import MOST_IN_LEGEND, styled
from lqray.reporting.histories import history
from lqray.reporting.methods import in_order, look, shade
from lqray.reporting.planned import Recorded
from lqray.reporting.plot import Request, plot, recordings_of
from tests.testing.figure_stores import FigureStore

STEPS = (100, 200, 300)
ACCURACY = {
    "full_precision": {1: (0.5, 0.8, 0.9), 2: (0.6, 0.7, 0.92), 3: (0.4, 0.75, 0.88)},
    "alq": {1: (0.45, 0.75, 0.89), 2: (0.55, 0.72, 0.9), 3: (0.5, 0.7, 0.87)},
    "nuqsgd": {1: (0.3, 0.5, 0.6), 2: (0.35, 0.52, 0.63), 3: (0.25, 0.41, 0.65)},
}


def at_steps(values, steps=STEPS):
    return dict(zip(steps, values, strict=True))


@pytest.fixture
def store(tmp_path):
    """Three methods, three seeds, the learning rate dropping twice."""
    filled = FigureStore(tmp_path)
    for method, seeds in ACCURACY.items():
        for seed, values in seeds.items():
            metrics = {"test/accuracy": at_steps(values)}
            filled.run(method, seed, metrics, {"schedule.decay_at": "[150, 250]"})
    return filled.save()


def drawn(store, kind, request=None, **options):
    """(figure, remarks) of a kind."""
    names = [Recorded(name, store.uri) for name in store.numbers]
    recordings = recordings_of(names, request or Request(kind))
    with styled():
        return load_kind(kind).draw(recordings, Options(**options)), recordings.remarks


def lines(axes):
    """By label, lines of groups."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def bands(axes):
    """(low, high, x) of each band, by its colour."""
    found = {}
    for band in axes.collections:
        vertices = band.get_paths()[0].vertices
        at = np.unique(vertices[:, 0])
        low = [vertices[vertices[:, 0] == x, 1].min() for x in at]
        high = [vertices[vertices[:, 0] == x, 1].max() for x in at]
        found[to_hex(band.get_facecolor()[0])] = (low, high, at)
    return found


def marked(axes, gid):
    return [line for line in axes.get_lines() if line.get_gid() == gid]


def legend_of(figure):
    (legend,) = figure.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def plotted(store, *arguments):
    return CliRunner().invoke(main, ["plot", *arguments, "--uri", store.uri])


def test_every_kind_is_a_file_with_what_the_command_needs():
    assert kinds() == (
        "bits",
        "bucket_size",
        "bytes_to_accuracy",
        "curves",
        "density",
        "levels",
        "throughput",
        "variance",
    )
    for name in kinds():
        kind = load_kind(name)
        assert kind.about.endswith(".")
        assert "group_by" in kind.takes
        assert f" {name}" in CliRunner().invoke(main, ["plot", "--help"]).stdout


def test_curves_are_means_and_t_intervals_in_the_methods_own_look(store):
    figure, remarks = drawn(store, "curves")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "test accuracy")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert list(lines(axes)) == ["SuperSGD", "NUQSGD", "ALQ"]
    for method, seeds in ACCURACY.items():
        own = look(method)
        line = lines(axes)[own.label]
        rows = np.array(list(seeds.values()))
        assert same_color(line.get_color(), own.colour)
        assert line.get_marker() == own.marker
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
        np.testing.assert_allclose(line.get_ydata(), rows.mean(axis=0))
        low, high = stats.t.interval(0.95, 2, rows.mean(axis=0), stats.sem(rows))
        found_low, found_high, at = bands(axes)[own.colour.lower()]
        np.testing.assert_array_equal(at, STEPS)
        np.testing.assert_allclose(found_low, low)
        np.testing.assert_allclose(found_high, high)
    assert [line.get_xdata()[0] for line in marked(axes, "learning-rate drop")] == [150, 250]
    title, entries = legend_of(figure)
    assert title == "mean and 95% interval of 3 seeds"
    assert entries == ["SuperSGD", "NUQSGD", "ALQ", "learning-rate drop"]
    assert remarks == []
    assert figure.get_figwidth() == 3.4
    assert drawn(store, "curves", width="double")[0].get_figwidth() == 7.0


def test_several_metrics_are_panels(tmp_path):
    store = FigureStore(tmp_path)
    for seed in (1, 2):
        loss = {"train/loss": {1: 2.0, 11: 1.0}, "quantizer/variance_ratio": {1: 3.0, 11: 2.0 * seed}}
        store.run("alq", seed, {"test/accuracy": at_steps((0.1, 0.5, 0.9))} | loss)
    figure, _ = drawn(store.save(), "curves", metrics=("accuracy", "train/loss", "variance_ratio"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["test accuracy", "train loss", "variance ratio"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log"]
    assert legend_of(figure) == ("mean (geometric where logarithmic) and 95% interval of 2 seeds", ["ALQ"])


def test_groups_of_one_method_are_shades_of_its_colour(tmp_path):
    store = FigureStore(tmp_path)
    for bits in (2, 3, 10):
        store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))}, {"quantizer.bits": bits})
    (axes,) = drawn(store.save(), "curves")[0].axes
    assert list(lines(axes)) == ["ALQ, bits 2", "ALQ, bits 3", "ALQ, bits 10"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 3
    assert same_color(lines(axes)["ALQ, bits 10"].get_color(), look("alq").colour)
    store.run("amq", 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))}, {"quantizer.bits": 2})
    (axes,) = drawn(store.save(), "curves")[0].axes
    assert list(lines(axes)) == ["ALQ, bits 2", "ALQ, bits 3", "ALQ, bits 10", "AMQ"]
    (axes,) = drawn(store, "curves", group_by=("bits",))[0].axes
    assert list(lines(axes)) == ["bits 2", "bits 3", "bits 10"]
    (axes,) = drawn(store, "curves", group_by=("quantizer.method",))[0].axes
    assert list(lines(axes)) == ["ALQ", "AMQ"]


def test_one_seed_has_a_line_and_no_band_and_unequal_seeds_are_said(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))})
    figure, _ = drawn(store.save(), "curves")
    assert not figure.axes[0].collections
    assert legend_of(figure)[0] == ""
    for seed in (1, 2):
        store.run("amq", seed, {"test/accuracy": at_steps((0.1 * seed, 0.5, 0.9))})
    figure, _ = drawn(store.save(), "curves")
    assert len(figure.axes[0].collections) == 1
    assert legend_of(figure)[0] == "mean and 95% interval of 1 to 2 seeds"


def test_a_value_that_is_not_finite_is_a_gap(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, math.nan, 0.9))})
    store.run("alq", 2, {"test/accuracy": at_steps((0.3, 0.5, math.inf))})
    store.run("amq", 1, {"test/accuracy": at_steps((math.nan, math.nan, math.nan))})
    figure, remarks = drawn(store.save(), "curves")
    np.testing.assert_allclose(lines(figure.axes[0])["ALQ"].get_ydata(), [0.2, math.nan, math.nan])
    assert remarks == [f"{name}: gaps where test/accuracy of a run is not finite" for name in ("ALQ", "AMQ")]
    assert next(plot([Recorded("known", store.uri)], Request("curves", out=tmp_path / "nan.png"))).files


def test_running_trials_are_drawn_when_asked_for(store):
    store.run("alq", 4, {"test/accuracy": {100: 0.9}}, {"schedule.decay_at": "[150, 250]"}, status="RUNNING")
    store.save()
    (axes,) = drawn(store, "curves")[0].axes
    finished = len(axes.get_lines())
    (axes,) = drawn(store, "curves", Request("curves", running=True))[0].axes
    assert len(axes.get_lines()) == finished + 1
    np.testing.assert_allclose(lines(axes)["ALQ"].get_ydata()[0], 0.5)  # not the running one's business


def test_runs_of_other_tools_are_not_drawn(store):
    store.run(None, 1, {"test/accuracy": at_steps((1.0, 1.0, 1.0))})
    figure, _ = drawn(store.save(), "curves")
    assert list(lines(figure.axes[0])) == ["SuperSGD", "NUQSGD", "ALQ"]


def test_smoothing_is_said_and_done_run_by_run(store):
    figure, _ = drawn(store, "curves", smooth=3)
    assert figure.axes[0].get_ylabel() == "test accuracy\n(mean of 3 points)"
    first = np.mean([np.mean(values[:2]) for values in ACCURACY["alq"].values()])
    np.testing.assert_allclose(lines(figure.axes[0])["ALQ"].get_ydata()[0], first)
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
    np.testing.assert_allclose(lines(axes)["SuperSGD"].get_ydata(), [math.sqrt(2) * 1e-4, 1e-5])
    np.testing.assert_allclose(lines(axes)["ALQ"].get_ydata(), [1e-3, math.sqrt(2) * 4e-4])
    assert legend_of(figure)[0].startswith("geometric mean")
    assert remarks == ["left out, for they have none of it: fp16"]
    figure, remarks = drawn(store, "variance", metrics=("variance_ratio",))
    assert list(lines(figure.axes[0])) == ["ALQ"]
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
    assert [axes.get_title() for axes in figure.axes] == ["TernGrad", "ALQ"]
    ternary, alq = figure.axes
    assert {axes.get_yscale() for axes in figure.axes} == {"symlog"}
    found = [line.get_ydata().tolist() for line in alq.get_lines() if line.get_gid() is None]
    np.testing.assert_allclose(found, [[-1, -1], [-0.02, -0.03], [0.05, 0.075], [1, 1]])
    assert all(same_color(line.get_color(), look("alq").colour) for line in alq.get_lines() if line.get_gid() is None)
    assert len([line for line in ternary.get_lines() if line.get_gid() is None]) == 3
    assert len(marked(alq, "learning-rate drop")) == 1
    assert len(marked(alq, "run")) == 2 * len(found)
    assert legend_of(figure)[0] == "mean and each of 2 seeds"


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
    figure = draw_density([("ALQ", SNAPSHOT), ("AMQ", SNAPSHOT | {"method": "amq", "levels": [-1.0, 1.0]})])
    first, second = figure.axes
    assert (first.get_xscale(), first.get_yscale(), first.get_title()) == ("symlog", "log", "ALQ")
    assert [line.get_xdata()[0] for line in marked(first, "level")] == SNAPSHOT["levels"]
    assert same_color(marked(second, "level")[0].get_color(), look("amq").colour)
    (stairs,) = first.patches
    np.testing.assert_allclose(stairs.get_data().edges, SNAPSHOT["edges"])
    np.testing.assert_allclose(stairs.get_data().values, [0.1, 400.0, 500.0, math.nan])

    store = FigureStore(tmp_path)
    levels = {f"quantizer/level/{j}": level for j, level in enumerate(SNAPSHOT["levels"])}
    first_run = store.run("alq", 1, levels)
    store.run("amq", 1, levels)
    store.save()
    MlflowClient(store.uri).log_text(first_run, json.dumps(SNAPSHOT), "density.json")
    figure, remarks = drawn(store, "density")
    assert [axes.get_title() for axes in figure.axes] == ["ALQ"]
    assert remarks == ["left out, for it has no density.json: AMQ"]


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
    (bars,) = axes.containers
    np.testing.assert_allclose(bars[0].get_xdata(), values, rtol=0.15)  # aside, but nearer to their own tick
    np.testing.assert_allclose(bars[0].get_ydata(), [np.mean(finals[value]) for value in values])
    segments = bars[2][0].get_segments()
    for value, segment in zip(values, segments, strict=True):
        ends = stats.t.interval(0.95, 2, np.mean(finals[value]), stats.sem(finals[value]))
        np.testing.assert_allclose(segment[:, 1], ends)
    (level,) = [line for label, line in lines(axes).items() if label == "SuperSGD"]
    np.testing.assert_allclose(level.get_ydata(), [0.92, 0.92])
    assert legend_of(figure) == ("mean and 95% interval of 3 seeds", ["SuperSGD", "ALQ"])


def test_runs_that_end_in_nan_are_left_out_of_finals_and_counted(tmp_path):
    store = FigureStore(tmp_path)
    for bits in (2, 3):
        store.run("alq", 1, {"test/accuracy": 0.5}, {"quantizer.bits": bits})
        store.run("alq", 2, {"test/accuracy": math.nan}, {"quantizer.bits": bits})
    figure, remarks = drawn(store.save(), "bits")
    np.testing.assert_allclose(figure.axes[0].containers[0][0].get_ydata(), [0.5, 0.5])
    assert remarks == ["ALQ: 2 runs are left out, whose test/accuracy is missing or not finite"]
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
    np.testing.assert_allclose(lines(axes)["ALQ"].get_xdata(), [1000, 2100, 3300])
    np.testing.assert_allclose(lines(axes)["SuperSGD"].get_xdata(), [10_000, 20_000, 30_000])
    assert remarks == ["left out, for they send nothing, or have not recorded it: SGD"]
    assert [line.get_ydata()[0] for line in marked(axes, "target")] == [0.8]
    assert sorted(line.get_xdata()[0] for line in marked(axes, "reached")) == [2100, 20_000]
    assert legend_of(figure)[1] == ["SuperSGD (20 kB)", "ALQ (2.1 kB)"]
    figure, _ = drawn(store, "bytes_to_accuracy", target=0.99)
    assert legend_of(figure)[1] == ["SuperSGD (not reached)", "ALQ (not reached)"]


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
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ALQ"]
    starts = [(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in axes.patches]
    assert starts[:3] == [(0, 2), (2, 4), (6, 12)]
    assert sorted(starts[3:-1]) == [(10, 2), (12, 4), (16, 2)]  # ends where the backward phase does
    assert starts[-1] == (18, 2)
    (diamond,) = [line for line in axes.get_lines() if line.get_marker() == "D"]
    assert diamond.get_xdata() == [18]
    (error,) = [one for one in axes.containers if len(one) == 3]
    ends = stats.t.interval(0.95, 2, 20, stats.sem([10, 20, 30]))
    np.testing.assert_allclose(error[2][0].get_segments()[0][:, 0], ends)


def test_files_are_the_same_bytes_for_the_same_records(store, tmp_path):
    first, second = (
        next(plot([Recorded("known", store.uri)], Request("curves", out=tmp_path / folder))).files
        for folder in ("a", "b")
    )
    assert [file.name for file in first] == ["known-curves.png", "known-curves.svg", "known-curves.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    png, svg, pdf = (file.read_bytes() for file in first)
    assert png.startswith(b"\x89PNG")
    assert b">test accuracy</text>" in svg
    assert b"dc:date" not in svg
    assert b"/CreationDate" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, type 42
    assert b"/Type3" not in pdf
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == sorted(file.name for file in first)


def test_the_users_matplotlib_settings_do_not_matter(store, tmp_path):
    import matplotlib

    plain = next(plot([Recorded("known", store.uri)], Request("curves", formats=("svg",), out=tmp_path / "a"))).files[0]
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        loud = next(
            plot([Recorded("known", store.uri)], Request("curves", formats=("svg",), out=tmp_path / "b"))
        ).files[0]
    assert loud.read_bytes() == plain.read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_the_command_says_what_it_writes(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = plotted(store, "known", "--kind", "curves", "--format", "svg,pdf")
    assert done.exit_code == 0, done.output
    assert done.stdout == "figures/known-curves.svg figures/known-curves.pdf\n"
    assert Path("figures/known-curves.pdf").exists()
    assert plotted(store, "known", "--kind", "curves", "--out", "one.png").stdout == "one.png\n"
    assert Path("one.png").read_bytes().startswith(b"\x89PNG")


def test_kind_all_draws_what_it_can_and_says_why_not_the_rest(store, tmp_path):
    done = plotted(store, "known", "--kind", "all", "--format", "png", "--out", str(tmp_path / "all"))
    assert done.exit_code == 0, done.output
    assert [file.name for file in (tmp_path / "all").iterdir()] == ["known-curves.png"]
    for kind in set(kinds()) - {"curves"}:
        assert f"{kind} is left out:" in done.stdout
    assert "telemetry.samples of 2 or more" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["known", "--kind", "curves", "--metric", "test/acuracy"],
            "did you mean 'test/accuracy'? allowed: test/accuracy",
        ),
        (["unknown", "--kind", "curves"], "no experiment 'unknown'"),
        (["known", "--kind", "curve"], "did you mean 'curves'? allowed: bits"),
        (["known", "--kind", "curves", "--format", "gif"], "allowed: png, svg, pdf"),
        (["known", "--kind", "curves", "--target", "0.9"], "allowed: with bytes_to_accuracy"),
        (["known", "--kind", "levels", "--smooth", "3"], "allowed: with bytes_to_accuracy, curves, variance"),
        (["known", "--kind", "all", "--out", "one.png"], "allowed: a folder"),
        (
            ["known", "--kind", "curves", "--only", "nope*"],
            "no trial of known matches --only nope*; there are: full_precis",
        ),
        (["known", "--kind", "curves", "--where", "quantizer.method=qsgd"], "no trial of known matches --where"),
        (["known", "--kind", "curves", "--group-by", "quantizer.metod"], "did you mean 'quantizer.method'?"),
        (["known", "--kind", "variance"], "no trial has recorded quantizer/quantized_variance"),
        (["known", "--kind", "levels"], "no trial has recorded quantizer/level/*"),
        (["known", "--kind", "density"], "no finished trial has the artifact density.json"),
        (["known", "--kind", "throughput"], "telemetry.every"),
        (["known", "--kind", "bytes_to_accuracy"], "no trial that has sent anything has recorded"),
    ],
)
def test_errors_teach(store, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = plotted(store, *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not Path("figures").exists()


def test_no_finished_trial_is_an_error_with_counts(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": {100: 0.5}}, status="RUNNING")
    store.run("alq", 2, status="FAILED")
    store.run("alq", 3, status="FAILED")
    done = plotted(store.save(), "known", "--kind", "curves")
    assert done.exit_code == 2
    assert "no trial of known has finished: 2 failed, 1 running" in done.stderr
    assert "`lqray failures`" in done.stderr
    assert "--running" in done.stderr
    figure, _ = drawn(store, "curves", Request("curves", running=True))
    assert len(figure.axes[0].get_lines()) == 1
    with pytest.raises(NothingToDrawError):
        drawn(store, "bits", Request("bits", running=True))


def test_several_experiments_are_drawn_together(tmp_path):
    store = FigureStore(tmp_path, "first", "second")
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.2, 0.3))}, {"quantizer.bits": 2}, experiment="first")
    store.run("alq", 1, {"test/accuracy": at_steps((0.3, 0.4, 0.5))}, {"quantizer.bits": 4}, experiment="second")
    store.save()
    figure, _ = drawn(store, "bits")
    np.testing.assert_allclose(figure.axes[0].containers[0][0].get_ydata(), [0.3, 0.5])
    done = plotted(store, "first", "second", "--kind", "curves", "--out", str(tmp_path / "two"), "--format", "svg")
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["first+second-curves.svg"], done.output


def test_drops_of_a_schedule_in_epochs_and_of_one_that_falls_evenly(tmp_path):
    store = FigureStore(tmp_path)
    epochs = {"schedule.epochs": 3, "schedule.decay_every": 1}
    store.run("alq", 1, {"test/accuracy": at_steps((0.1, 0.2, 0.3))}, epochs)
    store.run("amq", 1, {"test/accuracy": at_steps((0.1, 0.2, 0.3))}, {"schedule.decay": "cosine"})
    (axes,) = drawn(store.save(), "curves")[0].axes
    assert [line.get_xdata()[0] for line in marked(axes, "learning-rate drop")] == [100, 200]


def test_ten_thousand_runs_in_two_hundred_groups(tmp_path):
    store = FigureStore(tmp_path)
    for index in range(10_000):
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
    assert list(lines(figure.axes[0])) == ["SuperSGD", "QSGDinf", "NUQSGD", "ALQ", "AMQ"]


def test_methods_drawn_together_differ_for_the_colour_blind():
    """Distances in CIELAB of the colours as seen with each deficiency (Machado et al., 2009)."""
    sights = {
        "normal": np.eye(3),
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    together = ["sgd", "full_precision", "qsgd_inf", "nuqsgd", "terngrad", "alq", "amq", "optimal"]
    for sight in sights.values():
        seen = {name: _lab(np.asarray(sight) @ _linear(look(name).colour)) for name in together}
        white = _lab(np.ones(3))
        for index, name in enumerate(together):
            assert np.linalg.norm(seen[name] - white) > 25, name
            for other in together[index + 1 :]:
                assert np.linalg.norm(seen[name] - seen[other]) > 18, (name, other)


def test_methods_of_one_colour_differ_in_dashes_or_marker():
    looks = [
        look(name) for name in in_order(("alq", "alq_n", "alq_inf", "amq", "amq_n", "amq_inf", "qsgd", "qsgd_inf"))
    ]
    assert len({(one.colour, one.dashes, one.marker) for one in looks}) == len(looks)
    shades = [shade(look("alq"), index, 4) for index in range(4)]
    assert shades[-1] == look("alq")
    assert len({one.colour for one in shades}) == 4
    assert all(re.fullmatch(r"#[0-9A-F]{6}", one.colour) for one in shades)


def test_groups_across_methods_have_colours_of_no_method(tmp_path):
    store = FigureStore(tmp_path)
    for method, bits in (("alq", 2), ("amq", 2), ("alq", 3)):
        store.run(method, 1, {"test/accuracy": at_steps((0.1, 0.5, 0.9))}, {"quantizer.bits": bits})
    (axes,) = drawn(store.save(), "curves", group_by=("bits",))[0].axes
    colours = {line.get_color() for line in lines(axes).values()}
    assert len(colours) == 2
    assert not colours & {look(method).colour for method in methods()}


def _linear(colour):
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.asarray(to_xyz) @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
