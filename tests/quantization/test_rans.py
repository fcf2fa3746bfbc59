import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray.communication.wire.transport import CodePlanes, _check_lengths, _expand, _squeeze
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


@pytest.mark.parametrize("skew", [1.0, 0.2])
@pytest.mark.parametrize(("n", "flips"), [(200, 200), (4100, 30)])
def test_no_flipped_bit_decodes_to_other_codes(n, flips, skew):
    """Each is caught by one of: frequencies, states at the beginning and at the end, words and their number."""
    generator = np.random.default_rng(0)
    codes = (8 * generator.random(n) ** (1 / skew)).astype(np.uint8)
    stream = rans.encode(codes, 3)
    for bit in generator.integers(0, 8 * stream.size, flips).tolist():
        damaged = stream.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="entropy-coded stream"):
            rans.decode(damaged, n, 3)


@pytest.mark.parametrize("n", [0, 1, 4999, 5001, 2**40])
def test_a_stream_of_another_number_of_codes_is_an_error(n):
    stream = rans.encode(np.random.default_rng(0).integers(0, 8, 5000).astype(np.uint8), 3)
    with pytest.raises(ValueError, match="entropy-coded stream"):
        rans.decode(stream, n, 3)


def test_codes_and_planes_of_other_bits_are_errors():
    for call in (rans.encode, rans.planes_of):
        with pytest.raises(ValueError, match="a code is 9; allowed with 3 bits: 0 to 7"):
            call(np.array([1, 9], dtype=np.uint8), 3)
        for codes in (np.array([1, 2]), np.array([[1, 2]], dtype=np.uint8), np.array([1.0, 2.0])):
            with pytest.raises(ValueError, match="codes are"):
                call(codes, 3)
        for bits in (0, 9, -1):
            with pytest.raises(ValueError, match="1 to 8 bits"):
                call(np.zeros(4, dtype=np.uint8), bits)
    planes = rans.planes_of(np.zeros(33, dtype=np.uint8), 3)
    for wrong in (planes[:-1], planes[:12], np.concatenate([planes, planes]), planes.view(np.int8)):
        with pytest.raises(ValueError, match=r"allowed: uint8 of \(24,\)"):
            rans.codes_of(wrong, 33, 3)
    for n, bits in ((-1, 3), (5, 0), (5, 9)):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            rans.decode(planes, n, bits)
        with pytest.raises(ValueError, match="1 to 8 bits"):
            rans.codes_of(planes, n, bits)


def row() -> tuple[np.ndarray, list[CodePlanes]]:
    """Norms, codes that coding shortens, a tail; norms, codes that it does not."""
    generator = np.random.default_rng(0)
    few = rans.planes_of((generator.random(2000) < 0.05).astype(np.uint8), 3)
    even = rans.planes_of(generator.integers(0, 8, 70).astype(np.uint8), 3)
    parts = [generator.integers(0, 256, 12).astype(np.uint8), few, np.arange(20, dtype=np.uint8), even]
    return np.concatenate(parts), [CodePlanes(12, 2000, 3), CodePlanes(12 + few.size + 20, 70, 3)]


def test_a_coded_row_comes_back_and_of_any_other_length_is_an_error():
    whole, pieces = row()
    squeezed = _squeeze(whole, pieces)
    assert squeezed.size < whole.size
    np.testing.assert_array_equal(_expand(squeezed, pieces, whole.size), whole)
    lengths = [*range(0, squeezed.size, 7), squeezed.size - 1]
    for wrong in [squeezed[:length] for length in lengths] + [np.append(squeezed, squeezed[:more]) for more in (1, 4)]:
        with pytest.raises(ValueError, match="entropy-coded"):
            _expand(wrong, pieces, whole.size)


@pytest.mark.parametrize("lengths", [[[-1, 5]], [[5, 109]], [[2**62, 2**62]]])
def test_announced_lengths_that_no_row_has_are_errors(lengths):
    _check_lengths(torch.tensor([[0, 108]]), 100, [[CodePlanes(0, 1, 1), CodePlanes(4, 1, 1)]])
    with pytest.raises(ValueError, match="allowed: 0 to 108"):
        _check_lengths(torch.tensor(lengths), 100, [[CodePlanes(0, 1, 1), CodePlanes(4, 1, 1)]])
