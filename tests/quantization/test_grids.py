"""Bits allocated to blocks that are rounded on a grid: known answers, each beside its Monte Carlo error."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from lqray.experiment.options.quantizer import AllocatedOptions
from lqray.ops.allocation import block_widths
from lqray.quantization import Quantizer, allocation, linf_slopes
from lqray.quantization.grids import LOSSES
from lqray.quantization.place import Place
from lqray.quantization.slope_solver import Sloped, fit_slopes, variance_at
from tests.testing.methods import payload_bytes

INNER = ["rounding", "dither", "slopes"]
NORMAL = torch.randn(2**18, generator=torch.Generator().manual_seed(0))
RUNS = NORMAL * torch.where((torch.arange(NORMAL.numel()) // 256) % 2 == 0, 1.0, 1 / 16)

GOLDEN = {
    "rounding": (
        "00000000fef1000044c6ecdf78f8f0e180ff00fe0000ffffb849969ac049969affb66965",
        [-1082130432, -1082130432, 1065353216, 1027454345, 1051066071],
    ),
    "dither": (
        "00000000fef100000000004044c4ccdd78f8f0e180ff00fe0000ffffb849969ac049969affb66965",
        [-1082743863, -1082807495, 1065543205, 1023865058, 1051258465],
    ),
    "slopes": (
        "00000000fef10000000000401a1326d7e06338f8007cc0ff0080ffffedb66965f1b66965fe49969a",
        [-1081678726, -1084709465, 1064793617, -1128382394, 1050754125],
    ),
}
"""Payloads, and coordinates 0, 1, 31, 32 and 39 of what they decode to, as int32."""


def lost(x, decoded) -> float:
    return float((decoded - x).double().square().sum() / x.double().square().sum())


def nmse(inner, x, bits=3.0, **options) -> float:
    quantizer = Quantizer.create("allocated", bits=bits, inner=inner, exponent=1, **options)
    return lost(x, quantizer.decode(quantizer.encode(x, seed=1, offset=2)))


@pytest.mark.parametrize(("inner", "known"), [("rounding", 0.137), ("dither", 0.068), ("slopes", 0.056)])
def test_normal_coordinates_at_three_bits(inner, known):
    assert nmse(inner, NORMAL) == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize(("inner", "known"), [("rounding", 0.0265), ("dither", 0.0123), ("slopes", 0.0105)])
def test_runs_of_two_scales_cost_less_than_one(inner, known):
    assert nmse(inner, RUNS) == pytest.approx(known, rel=0.01)


def test_bits_go_where_the_energy_is():
    """Norms 1, 1/2, 1/4, 1/8: 3 2 2 1 at two bits on average, which lose .02359 of the largest norm's square with a
    dither, where equal widths lose .04919; 4 3 3 2 at three; no other widths lose less."""
    codes, squares = torch.tensor([[254, 246, 238, 230]], dtype=torch.uint8), 4.0 ** -np.arange(4)
    error = np.array([np.nan, *LOSSES["dither"]])
    for planes, known in ((8, [3, 2, 2, 1]), (12, [4, 3, 3, 2])):
        widths = block_widths(codes, allocation.order_of(1.0, LOSSES["dither"]), planes)[0][0].tolist()
        assert widths == known
        every = [each for each in itertools.product(range(1, 9), repeat=4) if sum(each) == planes]
        assert squares @ error[widths] == pytest.approx(min(squares @ error[list(each)] for each in every))
    assert squares @ error[[3, 2, 2, 1]] == pytest.approx(0.02359, abs=5e-6)
    assert squares @ error[[2, 2, 2, 2]] == pytest.approx(0.04919, abs=5e-6)


@pytest.mark.parametrize("inner", INNER)
def test_losses_are_those_of_normal_blocks(inner):
    """Of blocks of 64 normal coordinates over the largest magnitude times 2**(v / 8), v uniform, weighted by its
    square, by quadrature; and a dither's of any."""
    points, weights = normal_over_ceilings()
    for bits in range(1, 9):
        own = slice(2**bits - 2, 2 ** (bits + 1) - 2)
        uniform = np.linspace(-1, 1, 2**bits)
        grid = {
            "rounding": (uniform, np.zeros(2**bits)),
            "dither": (uniform, np.full(2**bits, 2 / (2**bits - 1))),
            "slopes": tuple(t[own].double().numpy() for t in (linf_slopes.levels(), linf_slopes.slopes())),
        }[inner]
        found = float(weights @ variance_at(points, *grid))
        assert LOSSES[inner][bits - 1] == pytest.approx(found, rel=3e-3)
        if inner == "slopes":
            levels, slopes = grid
            assert levels[0] == -1
            assert levels[-1] == 1
            assert (np.diff(levels) > 0).all()
            assert (slopes >= 0).all()
            assert (np.abs(np.diff(slopes)) <= 2 * np.diff(levels)).all()
            assert fit_slopes(points, weights, Sloped(levels, slopes, found)).variance >= 0.98 * found


def normal_over_ceilings():
    """As of `linf_slopes`: points (m,) of [-1, 1] and their weights."""
    bins = 1000
    weights = np.zeros(bins)
    for largest, v in itertools.product(norm.ppf((1 + ((np.arange(200) + 0.5) / 200) ** (1 / 64)) / 2), range(16)):
        ceiling = largest * 2 ** ((v + 0.5) / 16 / 8)
        inner = np.diff(norm.cdf(np.minimum(np.arange(bins + 1) / bins * ceiling, largest)))
        weights += ceiling**2 * 63 * inner / inner.sum()
        weights[int(largest / ceiling * bins)] += ceiling**2
    points = (np.arange(bins) + 0.5) / bins
    return np.concatenate([-points[::-1], points]), np.concatenate([weights[::-1], weights]) / weights.sum() / 2


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("bits", [1.13, 2.0, 2.5, 4.0])
def test_the_size_is_what_was_asked_for(inner, bits):
    quantizer = Quantizer.create("allocated", bits=bits, inner=inner)
    assert bits - 0.001 <= quantizer.encode(NORMAL, seed=1, offset=1).bits_per_coordinate <= bits
    for n in (0, 1, 200, 4096):
        payload = Quantizer.create("allocated", inner=inner).encode(NORMAL[:n], seed=1, offset=1)
        assert payload.nbytes == payload_bytes("allocated", n, inner)


@pytest.mark.parametrize("inner", INNER)
def test_every_coordinate_comes_back_on_average(inner):
    """By z-test of 4,000 encodings of blocks of many scales, one of them of a single coordinate, one constant; at 1.5
    bits, where most blocks have one."""
    x = torch.randn(512, generator=torch.Generator().manual_seed(5)) * torch.linspace(-3, 1, 512).exp()
    x[64:128] = 0
    x[70] = -3.0
    x[128:192] = 0.25
    quantizer, times = Quantizer.create("allocated", bits=1.5, inner=inner), 4000
    decoded = torch.stack(
        [quantizer.decode(quantizer.encode(x, seed=seed, offset=seed + 7)) for seed in range(times)]
    ).double()
    error, allowed = (decoded.mean(dim=0) - x).abs(), 5 * decoded.std(dim=0) / times**0.5
    # A coordinate that rarely rounds up has a distribution far from normal: Bernstein's allowance.
    assert (error <= allowed + 8 * (decoded - x).abs().amax(dim=0) / times + 1e-7).all()


@pytest.mark.parametrize("inner", INNER)
def test_any_scale_zeros_and_what_is_not_a_number(inner):
    x = torch.randn(256, generator=torch.Generator().manual_seed(1))
    x[192:] = 0
    quantizer = Quantizer.create("allocated", bits=4, inner=inner)
    usual = lost(x, quantizer.decode(quantizer.encode(x, seed=1, offset=1)))
    for scale in (2.0**-130, 1e-38, 1e-30, 1e30, 2.0**120):
        decoded = quantizer.decode(quantizer.encode(x * scale, seed=1, offset=1))
        assert lost(x, decoded / scale) < 2 * usual
        assert not decoded[192:].any()
    x[70] = math.nan
    x[130] = math.inf
    decoded = quantizer.decode(quantizer.encode(x, seed=1, offset=1))
    assert decoded[64:192].isnan().all()
    assert decoded[:64].isfinite().all()
    assert decoded[192:].isfinite().all()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_payloads_and_of_short_blocks(inner, dtype):
    x = (RUNS[:1000] + NORMAL[1000:2000]).to(dtype)
    quantizer = Quantizer.create("allocated", bits=3, inner=inner)
    payloads = [quantizer.encode_at(x, Place(worker, 4), seed=worker, offset=1) for worker in range(4)]
    mean = quantizer.decode_mean(torch.stack([each.buffer for each in payloads]), payloads[0])
    expected = torch.stack([quantizer.decode(each).double() for each in payloads]).mean(dim=0)
    rounding = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.01}
    torch.testing.assert_close(mean.double(), expected, **rounding)
    assert mean.dtype == dtype


@pytest.mark.parametrize("inner", INNER)
def test_golden_bytes(inner):
    """As docs/wire-format.md has them: the largest exponent, two norms and their padding, a phase, codes."""
    x = torch.cat([torch.linspace(-1, 1, 32), torch.linspace(0, 0.3, 8)])
    quantizer = Quantizer.create("allocated", bits=6, bucket_size=32, inner=inner, exponent=1)
    payload = quantizer.encode_at(x, Place(1, 4, correlated=True), seed=5, offset=6)
    written, decoded = GOLDEN[inner]
    assert bytes(payload.buffer.numpy()).hex() == written
    assert quantizer.decode(payload)[[0, 1, 31, 32, 39]].view(torch.int32).tolist() == decoded


def error_of_mean(inner, correlated, workers=4):
    """Of workers with equal gradients, over that of one."""
    quantizer = Quantizer.create("allocated", bits=2.125, inner=inner, exponent=1)
    places = [Place(worker, workers, correlated=correlated) for worker in range(workers)]
    payloads = [quantizer.encode_at(RUNS, place, seed=100 + place.worker, offset=3) for place in places]
    mean = quantizer.decode_mean(torch.stack([each.buffer for each in payloads]), payloads[0])
    return lost(RUNS, mean) / lost(RUNS, quantizer.decode(payloads[0]))


def test_workers_that_agree_cancel_their_errors():
    """Four of them: a sixteenth with a dither, whose phases are always of one stream; a fourth with stochastic
    rounding, and about a sixteenth where it is correlated."""
    assert error_of_mean("dither", correlated=False) == pytest.approx(1 / 16, rel=0.02)
    assert error_of_mean("dither", correlated=True) == pytest.approx(1 / 16, rel=0.02)
    assert error_of_mean("slopes", correlated=False) < 0.1
    assert error_of_mean("rounding", correlated=False) == pytest.approx(1 / 4, rel=0.02)
    assert error_of_mean("rounding", correlated=True) < 0.1


def test_parts_of_a_tensor_have_streams_of_their_own():
    quantizer = Quantizer.create("allocated", inner="dither")
    one, other = (quantizer.encode_at(NORMAL[:640], Place(0, 2, part=part), seed=1, offset=1) for part in (0, 1))
    assert not torch.equal(one.buffer, other.buffer)
    assert lost(NORMAL[:640], quantizer.decode(one)) < 1
    assert lost(NORMAL[:640], quantizer.decode(other)) < 1


def test_the_exponent_decides_who_is_heard():
    x = NORMAL[:4096] * torch.linspace(-4, 0, 4096).exp()
    for inner in INNER:
        quiet, loud = (Quantizer.create("allocated", exponent=each, inner=inner) for each in (0.0, 1.0))
        errors = [lost(x, each.decode(each.encode(x, seed=1, offset=1))) for each in (quiet, loud)]
        assert errors[0] > errors[1]


@pytest.mark.parametrize(
    ("inner", "refused", "allowed"), [("rounding", 1.5, 1.8), ("slopes", 1.3, 1.5), ("dither", 1.0, 1.2)]
)
def test_what_cannot_be_fed_back_is_refused(inner, refused, allowed):
    """By what comes of 200 steps, too: where it is allowed, less than 100 gradients are held back; where stochastic
    rounding or slopes are refused, it grows without bound."""
    why = AllocatedOptions(method="allocated", inner=inner, bits=refused).why_no_contraction()
    assert why is not None
    assert "of one bit" in why
    assert AllocatedOptions(method="allocated", inner=inner, bits=allowed).why_no_contraction() is None
    assert AllocatedOptions(method="allocated", bits=1).why_no_contraction() is None
    assert most_held(inner, allowed) < 100
    if inner != "dither":
        assert most_held(inner, refused) > 100


def most_held(inner, bits) -> float:
    quantizer, held, most = Quantizer.create("allocated", bits=bits, inner=inner), torch.zeros(4096), 0.0
    for step in range(200):
        x = torch.randn(4096, generator=torch.Generator().manual_seed(step))
        corrected = x + held
        held = corrected - quantizer.decode(quantizer.encode(corrected, seed=step, offset=step))
        most = max(most, float(held.norm() / x.norm()))
        if most > 1e6:
            break
    return most
