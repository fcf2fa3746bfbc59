"""The figure of modelled steps against the bandwidth of links."""

import numpy as np
import pytest

from lqray.reporting.figures.recordings import NothingToDrawError
from lqray.reporting.links import Link, Step, sixteen_bits
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
        line, (other,) = lines(axes)["EDEN"], marked(axes, "bf16")
        bandwidths = line.get_xdata()
        assert (bandwidths[0], bandwidths[-1]) == pytest.approx((1e6, 1e11))
        for drawn_line, each in ((line, step), (other, plain)):
            seconds = [each.seconds(workers, Link("", bits)) for bits in bandwidths]
            np.testing.assert_allclose(drawn_line.get_ydata(), seconds)
    title, entries = legend_of(figure)
    assert title.startswith("modelled, not measured")
    assert entries == ["EDEN", "bf16, modelled"]
    assert any("ALQ" in remark for remark in remarks)


def test_bf16_itself_is_a_line_like_others(store):
    store.run("bf16", 1, sent(200e3, 16.0) | phases(forward=0.01, backward=0.03), PARAMS)
    figure, _ = drawn(store.save(), "links")
    assert set(lines(figure.axes[0])) == {"bf16", "EDEN"}
    assert not marked(figure.axes[0], "bf16")
    assert lines(figure.axes[0])["bf16"].get_ydata()[0] == pytest.approx(0.03 + 1.6)


def test_without_phases_there_is_nothing_to_draw(tmp_path):
    made = FigureStore(tmp_path)
    made.run("eden", 1, sent(25e3, 2.0), PARAMS)
    with pytest.raises(NothingToDrawError, match=r"telemetry\.every: 10"):
        drawn(made.save(), "links")
