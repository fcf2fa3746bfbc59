import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lqray import ops
from lqray.communication.wire.transport import CodePlanes, _check_lengths, _expand, _squeeze
from lqray.quantization import Quantizer, rans
from lqray.quantization.entropy import entropy_bits


@pytest.mark.parametrize("method", ["alq", "qsgd_inf", "nuqsgd", "terngrad"])
def test_within_a_hundredth_of_the_entropy_of_codes_of_gradients(method):
    quantizer = Quantizer.create(method)
    gradient = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    codes = quantizer.encode(gradient, seed=1, offset=0).codes
    length = 8 * rans.encode(codes, 2 if method == "terngrad" else 3).numel() / codes.numel()
    entropy = entropy_bits(np.bincount(codes.numpy()))
    assert entropy <= length <= 1.01 * entropy + 8 * 280 / codes.numel()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3000), st.integers(1, 8), st.integers(1, 400), st.integers(1, 6), st.integers(0, 2**31), st.data()
)
def test_codes_of_classes_come_back(n, bits, group, classes, seed, data):
    """Some classes have no group, one has the last, which may be short."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n,), generator=draw).to(torch.uint8)
    of_groups = torch.randint(0, classes, (-(-n // group),), generator=draw)
    of_groups = of_groups.to(data.draw(st.sampled_from([torch.uint8, torch.int32, torch.int64]))) * (250 // classes)
    stream = rans.encode(codes, bits, of_groups, group)
    assert torch.equal(rans.decode(stream, n, bits, of_groups, group), codes)
    assert torch.equal(rans.decode(rans.encode(codes, bits), n, bits), codes)


def test_each_class_has_frequencies_of_its_own():
    """Groups of two widths: nearly the entropy of each on its own, which one table for all does not come near. A class
    of zeros is its length, a bitmap and one frequency."""
    group, draw = 64, torch.Generator().manual_seed(0)
    of_groups = torch.arange(3000) % 3
    scales = torch.tensor([0.0, 0.4, 2.0])[of_groups].repeat_interleave(group)
    codes = (torch.randn(scales.numel(), generator=draw) * scales + 8).round().clamp(0, 15).to(torch.uint8)
    own = [codes.view(-1, group)[of_groups == c].reshape(-1) for c in range(3)]
    entropy = sum(entropy_bits(np.bincount(part.numpy())) * part.numel() / 8 for part in own)
    together = rans.encode(codes, 4).numel()
    apart = rans.encode(codes, 4, of_groups, group).numel()
    assert entropy < apart < 1.01 * entropy + 2 * (4 + 2 + 2 * 16 + 4 * 32)
    assert apart < 0.75 * together
    nothing = torch.zeros(3000 * group, dtype=torch.uint8)
    assert rans.encode(nothing, 4, of_groups, group).numel() == 3 * (4 + 2 + 2)


def test_damaged_classes_and_classes_that_do_not_fit_are_errors():
    codes = torch.randint(0, 8, (1000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    of_groups = torch.arange(10) % 2
    stream = rans.encode(codes, 3, of_groups, 100)
    longer = torch.cat([stream, stream[:2]])
    wrong_length = stream.clone()
    wrong_length[0] += 2
    for damaged in (stream[:-2], stream[:3], stream[:100], stream[:0], longer, wrong_length):
        with pytest.raises(ValueError, match="an entropy-coded stream|entropy-coded classes"):
            rans.decode(damaged, 1000, 3, of_groups, 100)
    with pytest.raises(ValueError, match="an entropy-coded stream"):
        rans.decode(stream, 1000, 3, 1 - of_groups[torch.arange(10) > 0].repeat(2)[:10], 100)
    for wrong, group in ((of_groups[1:], 100), (of_groups.double(), 100), (of_groups.view(2, 5), 100), (of_groups, 10)):
        for call in (lambda w, g: rans.encode(codes, 3, w, g), lambda w, g: rans.decode(stream, 1000, 3, w, g)):
            with pytest.raises(ValueError, match="allowed: integers of"):
                call(wrong, group)
    for wrong in (of_groups - 1, of_groups + 255):
        with pytest.raises(ValueError, match="allowed: 0 to 255"):
            rans.encode(codes, 3, wrong, 100)
    with pytest.raises(ValueError, match="groups have 0 codes"):
        rans.encode(codes, 3, of_groups, 0)


@pytest.mark.parametrize("n", [0, 1, 4999, 5001, 2**40])
def test_a_stream_of_another_number_of_codes_is_an_error(n):
    codes = torch.randint(0, 8, (5000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with pytest.raises(ValueError, match="entropy-coded stream"):
        rans.decode(rans.encode(codes, 3), n, 3)


def row() -> tuple[np.ndarray, list[CodePlanes]]:
    """Norms, codes that coding shortens, a tail; norms, codes that it does not."""
    generator = np.random.default_rng(0)
    few = ops.pack(torch.from_numpy((generator.random(2000) < 0.05).astype(np.uint8)), 3).numpy()
    even = ops.pack(torch.from_numpy(generator.integers(0, 8, 70).astype(np.uint8)), 3).numpy()
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
