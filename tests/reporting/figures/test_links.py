"""The figure of modelled steps against the bandwidth of links."""

import json

import numpy as np
import pytest

from lqray.reporting.figures.recordings import NothingToDrawError
from lqray.reporting.links import Link, Step, sixteen_bits
from lqray.reporting.measured_links import MeasuredFileError, read_measured
from tests.testing.drawn_figures import drawn, legend_of, lines, marked
from tests.testing.figure_stores import FigureStore

PARAMS = {"workers": 2, "data.name": "digits"}


def phases(**seconds):
    return {f"time/{phase}_seconds": {1: 9.0, 11: value, 21: value} for phase, value in seconds.items()}


def sent(count, bits):
    return {"wire/payload_bytes": count, "wire/bytes_sent": count, "wire/bits_per_coordinate": bits}


@pytest.fixture
def store(tmp_path):
    made = FigureStore(tmp_path)
    made.run("eden", 1, sent(25e3, 2.0) | phases(forward=0.01, backward=0.02, encode=0.002, decode=0.004), PARAMS)
    made.run("alq", 1, {"wire/bytes_sent": 9}, PARAMS)
    return made


def test_a_line_is_the_modelled_step(store):
    figure, remarks = drawn(store.save(), "links")
    assert [axes.get_title() for axes in figure.axes] == ["2 workers", "8 workers", "64 workers"]
    step = Step("all_gather", 0.03, 25e3, encode=0.002, decode=0.002)
    plain = sixteen_bits(100_000, 0.03, 1)
    for axes, workers in zip(figure.axes, (2, 8, 64), strict=True):
        line, (other,) = lines(axes)["eden"], marked(axes, "bf16")
        bandwidths = line.get_xdata()
        assert (bandwidths[0], bandwidths[-1]) == pytest.approx((1e6, 1e11))
        for drawn_line, each in ((line, step), (other, plain)):
            seconds = [each.seconds(workers, Link("", bits)) for bits in bandwidths]
            np.testing.assert_allclose(drawn_line.get_ydata(), seconds)
    title, entries = legend_of(figure)
    assert title.startswith("lines are modelled")
    assert entries == ["eden", "bf16, modelled"]
    assert any("alq" in remark for remark in remarks)


def test_bf16_itself_is_a_line_like_others(store):
    store.run("bf16", 1, sent(200e3, 16.0) | phases(forward=0.01, backward=0.03), PARAMS)
    figure, _ = drawn(store.save(), "links")
    assert set(lines(figure.axes[0])) == {"bf16", "eden"}
    assert not marked(figure.axes[0], "bf16")
    assert lines(figure.axes[0])["bf16"].get_ydata()[0] == pytest.approx(0.03 + 1.6)


def test_without_phases_there_is_nothing_to_draw(tmp_path):
    made = FigureStore(tmp_path)
    made.run("eden", 1, sent(25e3, 2.0), PARAMS)
    with pytest.raises(NothingToDrawError, match=r"telemetry\.every: 10"):
        drawn(made.save(), "links")


@pytest.fixture
def sweep(tmp_path):
    """2 bits reach 0.8 after 200 and 400 steps, a third run not at all; full precision after 100; bf16 never."""
    made = FigureStore(tmp_path)
    own = phases(forward=0.01, backward=0.02, encode=0.002, decode=0.004) | sent(25e3, 2.0)
    for seed, values in enumerate(((0.5, 0.9, 0.9, 0.9), (0.5, 0.6, 0.7, 0.8), (0.1, 0.2, 0.3, 0.4)), start=1):
        made.run(
            "eden",
            seed,
            own | {"test/accuracy": dict(zip((100, 200, 300, 400), values, strict=True))},
            PARAMS | {"quantizer.bits": 2.0},
        )
    for method, width, value in (("full_precision", 32.0, 0.9), ("bf16", 16.0, 0.1)):
        counts = sent(width / 8 * 100e3, width) | phases(forward=0.01, backward=0.03)
        made.run(method, 1, counts | {"test/accuracy": {100: value}}, PARAMS)
    return made.save()


def test_seconds_to_a_target_are_mean_steps_times_the_modelled_step(sweep):
    figure, remarks = drawn(sweep, "links", target=0.8, workers=(4,))
    (axes,) = figure.axes
    assert axes.get_title() == "4 workers"
    assert axes.get_ylabel() == "seconds to test accuracy 0.8"
    assert set(lines(axes)) == {"full_precision", "eden"}
    # 300 steps of 30 ms, 2 ms, four payloads of 2 ms, and three payloads of 25 kB at 1 Mbit/s.
    assert lines(axes)["eden"].get_ydata()[0] == pytest.approx(300 * (0.03 + 0.002 + 4 * 0.002 + 0.6))
    assert lines(axes)["full_precision"].get_ydata()[0] == pytest.approx(100 * (0.03 + 1.5 * 3.2))
    assert not marked(axes, "bf16")
    assert remarks == ["eden: 2 of 3 runs reached 0.8", "left out, for they did not reach 0.8: bf16"]
    with pytest.raises(NothingToDrawError, match="reached test/accuracy 0.95"):
        drawn(sweep, "links", target=0.95)


ROWS = [
    {"method": "eden_2_bits", "link_megabits": 10, "seconds_per_step": 0.06, "seconds_to_target": 18.0, "target": 0.8},
    {"method": "eden_2_bits", "link_megabits": 10, "seconds_per_step": 0.08, "seconds_to_target": None, "target": 0.8},
    {"method": "bf16", "link_megabits": 100, "seconds_per_step": 0.2, "measured": False, "workers": 2},
    {"method": "eden_2_bits_every_8", "link_megabits": 10, "seconds_per_step": 0.01},
    {"method": "eden", "bits": 1, "bandwidth": 1e7, "seconds_per_step": 0.01},
]


def test_what_was_measured_is_marked_beside_the_lines(sweep, tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"figures": {"hosts": 2, "rows": ROWS}}))
    figure, remarks = drawn(sweep, "links", measured=read_measured(str(file)))
    two, eight, _ = figure.axes
    marks = {(mark.get_xdata()[0], mark.get_ydata()[0]): mark for mark in marked(two, "measured")}
    assert set(marks) == {(1e7, 0.07), (1e8, 0.2)}
    assert marks[1e7, 0.07].get_markerfacecolor() == lines(two)["eden"].get_color()
    assert marks[1e8, 0.2].get_markerfacecolor() == "white"
    assert not marked(eight, "measured")
    assert legend_of(figure)[1][-2:] == ["measured", "extrapolated from fewer steps"]
    assert remarks[-1].startswith("2 of 5 measurements are left out")
    figure, _ = drawn(sweep, "links", measured=read_measured(str(file)), target=0.8)
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marked(figure.axes[0], "measured")] == [(1e7, 18.0)]
    figure, _ = drawn(sweep, "links", measured=read_measured(str(file)), target=0.7)
    assert not marked(figure.axes[0], "measured")  # it was measured to another target


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"),
        ('{"rows": 3}', "a list of rows"),
        ('[{"method": "eden"}]', "link_megabits"),
        ('[{"method": "eden", "bandwidth": 0}]', "bandwidth 0"),
        ('[{"method": "eden", "bandwidth": 1e6, "seconds_per_step": -1}]', "seconds -1"),
        ('[{"workload": "a"}, {"workload": "b"}]', "found rows of workloads a, b; allowed: one"),
    ],
)
def test_what_is_no_file_of_measurements_is_said(tmp_path, content, said):
    file = tmp_path / "odd.json"
    file.write_text(content)
    with pytest.raises(MeasuredFileError, match=said) as raised:
        read_measured(str(file))
    assert "odd.json" in str(raised.value)


def test_the_benchmarks_own_file_is_read():
    from pathlib import Path

    file = Path(__file__).parents[3] / "benchmarks/results/time_to_target.json"
    points = read_measured(f"{file}:gpt_small")
    assert {(one.method, one.bits, one.every) for one in points} >= {("bf16", None, None), ("eden", 1.0, 8)}
    assert {one.bandwidth for one in points} == {1e7, 1e8, 1e9}
    with pytest.raises(MeasuredFileError, match="gpt_small_muon; allowed: one"):
        read_measured(str(file))
    with pytest.raises(MeasuredFileError, match="found no file"):
        read_measured(f"{file}x")
