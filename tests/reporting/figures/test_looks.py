"""Colours, dashes and markers tell methods apart, for the colour-blind, too."""

import re

import numpy as np

from lqray.experiment.names import methods
from lqray.reporting.methods import in_order, look, shade
from tests.testing.drawn_figures import at_steps, drawn, lines
from tests.testing.figure_stores import FigureStore


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
