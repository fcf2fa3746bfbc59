import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.ops import reference
from lqray.quantization import Quantizer, rans
from lqray.quantization.entropy import entropy_bits

torch = pytest.importorskip("torch")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 6000), st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_codes_come_back(bits, n, seed, skew):
    generator = np.random.default_rng(seed)
    codes = (2**bits * generator.random(n) ** (1 / skew)).astype(np.uint8)
    np.testing.assert_array_equal(rans.decode(rans.encode(codes, bits), n, bits), codes)
    planes = rans.planes_of(codes, bits)
    np.testing.assert_array_equal(planes, reference.pack(torch.from_numpy(codes), bits).numpy())
    np.testing.assert_array_equal(rans.codes_of(planes, n, bits), codes)


@pytest.mark.parametrize("method", ["alq", "qsgd_inf", "nuqsgd", "terngrad"])
def test_within_a_twentieth_of_a_bit_of_the_entropy(method):
    quantizer = Quantizer.create(method)
    gradient = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    codes = quantizer.encode(gradient, seed=1, offset=0).codes.numpy()
    bits = 2 if method == "terngrad" else 3
    length = 8 * rans.encode(codes, bits).size / codes.size
    assert entropy_bits(np.bincount(codes)) <= length <= entropy_bits(np.bincount(codes)) + 0.05


def test_damaged_streams_are_errors():
    codes = np.random.default_rng(0).integers(0, 8, 5000).astype(np.uint8)
    stream = rans.encode(codes, 3)
    for damaged in (stream[:10], stream[:-2], np.concatenate([stream, stream[:2]])):
        with pytest.raises(ValueError, match="entropy-coded stream"):
            rans.decode(damaged, 5000, 3)
    wrong = stream.copy()
    wrong[0] ^= 1
    with pytest.raises(ValueError, match="frequencies"):
        rans.decode(wrong, 5000, 3)
