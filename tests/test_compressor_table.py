"""benchmarks/compressors.py measures what it says, of every method that there is."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lqray.experiment.schema import Resources
from lqray.quantization import Quantizer
from lqray.training.capture import capture, write_captures
from tests.testing.methods import EXCHANGED
from tests.training.test_capture import trial

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmarks(monkeypatch):
    """The two modules, as the script sees them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("compressors", "gradients", "record", "transformer")
    yield [importlib.import_module(name) for name in names[:2]]
    for name in names:
        sys.modules.pop(name)


def noise(gradients, scale=1.0):
    """Gradients of four workers that share most of theirs; a matrix of 40 x 64 and a vector of 40."""
    random = torch.Generator().manual_seed(1)
    common = torch.randn(4, 1, 2600, generator=random)
    flat = scale * (common + 0.5 * torch.randn(4, 4, 2600, generator=random))
    return gradients.Gradients("noise", flat[:2], flat[2:], [(40, 64), (40,)])


def test_every_method_that_is_exchanged_is_in_it(benchmarks):
    table, _ = benchmarks
    found = list(table.variants())
    assert {one.method for one in found} == set(EXCHANGED)
    assert len({repr(one) for one in found}) == len(found)
    assert [one.options for one in table.variants(["terngrad"])] == [{"bucket_size": 512}, {"bucket_size": 8192}]
    assert {one.options["bits"] for one in table.variants(["alq"])} == {1, 2, 3, 4}
    for one in found:
        one.create()


def test_what_is_measured(benchmarks):
    """Of terngrad on numbers of one magnitude, which are levels, nothing is lost; of the others what their own payloads
    say, and a mean of workers whose roundings are independent errs less."""
    table, gradients = benchmarks
    ones = gradients.Gradients("ones", torch.ones(1, 2, 64), -torch.ones(1, 2, 64), [(64,)])
    exact = table.measured(Quantizer.create("terngrad", bucket_size=32), ones)
    assert exact == {"bits": 3.0, "nmse": 0.0, "mean_nmse": 0.0, "entropy_bits": 0.0}
    found = table.measured(Quantizer.create("optimal_inf", bits=3, bucket_size=512), noise(gradients))
    assert found["bits"] == pytest.approx(8 * (4 * 6 + 12 * 82) / 2600)
    assert 0.05 < found["nmse"] < 0.15
    assert found["mean_nmse"] == pytest.approx(found["nmse"] / 4 * 1.25 / 1.0625, rel=0.1)
    assert found["entropy_bits"] < 3


def test_the_figure_has_the_best_variant_at_each_number_of_bits(benchmarks):
    """A variant that is better only because it sends more is not."""
    table, _ = benchmarks
    points = [(3, 3.0, 0.1), (2, 2.0, 0.5), (3, 3.3, 0.09), (2, 2.1, 0.3), (1, 1.0, 99.0)]
    rows = [{"options": {"bits": wanted}, "bits": bits, "nmse": nmse} for wanted, bits, nmse in points]
    assert table.best(rows) == [(2.1, 0.3), (3.0, 0.1)]


def test_levels_are_not_fitted_to_what_is_measured(benchmarks):
    table, gradients = benchmarks
    fit, held = noise(gradients), noise(gradients, 1e-3)
    quantizer = Quantizer.create("optimal_inf", bucket_size=512)
    table.measured(quantizer, gradients.Gradients("both", fit.fit, held.held.square(), fit.shapes))
    other = Quantizer.create("optimal_inf", bucket_size=512)
    table.measured(other, fit)
    assert torch.equal(quantizer.levels, other.levels)


def test_the_script_on_a_file_of_captured_gradients(benchmarks, tmp_path, monkeypatch):
    table, gradients = benchmarks
    write_captures(tmp_path / "small.pt", trial(), "small", capture(trial(), Resources(), [2], samples=2))
    (captured,) = gradients.from_file(tmp_path / "small.pt")
    assert captured.name == "small, 2 steps"
    assert captured.fit.shape == captured.held.shape == (1, 2, sum(int(np.prod(shape)) for shape in captured.shapes))
    written = {}
    monkeypatch.setattr(table, "record", lambda name, figures, targets: written.update(figures))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "TIMED", 4096)
    monkeypatch.setattr(table, "SWEPT", {"bits": (2,), "bucket_size": (512,), "density": (0.1,), "exponent": (1.0,)})
    monkeypatch.setattr(table, "LEFT_OUT", {"solver": {"coordinate", "original"}})
    monkeypatch.setattr(sys, "argv", ["compressors.py", str(tmp_path / "small.pt")])
    threads = torch.get_num_threads()
    try:
        table.main()
    finally:
        torch.set_num_threads(threads)
    assert {row["method"] for row in written["rows"]} == set(EXCHANGED)
    assert all(row["nmse"] >= 0 and row["encode_ns"] > 0 for row in written["rows"])
    assert (tmp_path / "compressors.png").stat().st_size > 10_000


def test_only_what_the_results_lack_is_measured_and_times_stay(benchmarks, tmp_path, monkeypatch):
    table, gradients = benchmarks
    chosen = table.Variant("drive", {"bucket_size": 512})
    times = {"encode_ns": 123.0, "decode_ns": 45.0}
    row = {"gradients": "old", "method": chosen.method, "options": chosen.options, "bits": 2.1, "nmse": 1.0} | times
    before = {"clone_ns": 7.0, "bounds": {"old": {"bits": [1.0, 2.0], "block_gaussian": [0.1, 0.01]}}, "rows": [row]}
    (tmp_path / "compressors.json").write_text(json.dumps({"figures": before}))
    written = {}
    monkeypatch.setattr(table, "record", lambda name, figures, targets: written.update(figures))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "NETWORKS", {})
    monkeypatch.setattr(table, "of_transformer", lambda after: noise(gradients))
    monkeypatch.setattr(table, "variants", lambda: [chosen])
    monkeypatch.setattr(sys, "argv", ["compressors.py", "--missing"])
    threads = torch.get_num_threads()
    try:
        table.main()
    finally:
        torch.set_num_threads(threads)
    assert written["rows"][0] == row
    assert [one["gradients"] for one in written["rows"]] == list(written["bounds"]) == ["old", "noise"]
    assert {name: written["rows"][1][name] for name in times} == times
    assert written["clone_ns"] == 7.0


def test_gradients_of_the_transformer_are_of_four_workers_and_of_other_bytes(benchmarks):
    _, gradients = benchmarks
    threads = torch.get_num_threads()
    try:
        found = gradients.of_transformer(1, samples=2)
    finally:
        torch.set_num_threads(threads)
    assert found.name == "transformer, Python's library, 1 steps"
    assert found.fit.shape == found.held.shape == (1, 4, sum(int(np.prod(shape)) for shape in found.shapes))
    rows = torch.cat([found.fit, found.held]).view(8, -1)
    assert len({float(row.norm()) for row in rows}) == 8


@pytest.mark.parametrize("bits", [0.5, 1.0, 3.0])
def test_the_bound_of_blocks_of_one_variance_is_that_of_a_normal(benchmarks, bits):
    _, gradients = benchmarks
    vector = np.tile([2.0, -2.0], 100)
    assert gradients.block_gaussian_nmse(vector[None], np.array([bits]))[0] == pytest.approx(4.0**-bits, rel=1e-9)


def test_the_bound_of_blocks_of_unlike_variance(benchmarks):
    """Variances 1 and 1/16, one bit for each coordinate on average: levelled at 1/16, the first half takes two bits and
    the other none. With a vector of zeros beside it, and a short last block."""
    _, gradients = benchmarks
    vector = np.concatenate([np.ones(128), np.full(128, 0.25)])
    bound = gradients.block_gaussian_nmse(np.stack([vector, np.zeros(256)]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(bound, [2 / 16 / (1 + 1 / 16), 2 * (1 / 4) / 16 / (1 + 1 / 16)], rtol=1e-9)
    short = np.concatenate([np.ones(128), np.full(32, 1e-6)])
    assert gradients.block_gaussian_nmse(short[None], np.array([1.6]))[0] == pytest.approx(4.0**-2, rel=1e-6)


def committed(method, **options):
    """NMSE in the committed table, of the ResNet-8."""
    rows = json.loads((ROOT / "benchmarks/results/compressors.json").read_text())["figures"]["rows"]
    wanted = options.items()
    (found,) = [
        row["nmse"]
        for row in rows
        if row["gradients"].startswith("ResNet-8") and row["method"] == method and wanted <= row["options"].items()
    ]
    return found


def test_with_the_papers_own_levels_its_order_comes_back():
    """docs/guide/methods.md; Faghri et al. 2020, variances of ResNet-32: alq 1.6, amq 2.4, qsgd_inf 4.5, terngrad 13,
    nuqsgd 128."""
    own, size = {"solver": "original", "bits": 3}, {"bucket_size": 8192}
    errors = [
        committed("alq", **own, **size),
        committed("amq", **own, **size),
        committed("qsgd_inf", bits=3, **size),
        committed("terngrad", **size),
        committed("nuqsgd", bits=3, **size),
    ]
    assert errors == sorted(errors)
