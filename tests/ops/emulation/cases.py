"""What only an emulated machine can be asked: every order of threads and blocks, and tensors that no memory holds."""

import numpy as np
import pytest
import torch

from lqray import ops
from lqray.ops import allocation, eden, reference
from lqray.quantization import allocation as tables
from tests.ops.emulation.plugin import asked_settings, settings
from tests.ops.test_backends import DTYPES, data, same, some_levels
from tests.ops.test_blocks import some_blocks

# Of all the coordinates the last ones: the blocks before them do not run.
TAIL = 2 * 8192 + 1009


@pytest.fixture(autouse=True)
def _settings():
    yield
    asked_settings()


def everything(x: torch.Tensor, bits: int, bucket: int):
    """(operator, what it gives) of every operator."""
    n, levels = x.numel(), some_levels(bits)
    for norm in ("l2", "linf", "rms"):
        norms = ops.bucket_norms(x, bucket, norm)
        yield f"bucket_norms {norm}", norms
        for name, column in zip(("norms", "means", "sigmas"), ops.bucket_statistics(x, bucket, norm), strict=True):
            yield f"bucket_statistics {norm} {name}", column
        yield f"encode {norm}", ops.encode(x, norms, levels, bits, bucket, 2**63 + 1, 2**64 - 1)
        payload = ops.encode_fused(x, levels, bits, bucket, norm, 2**63 + 1, 2**64 - 1)
        yield f"encode_fused {norm}", payload
        for size in (128, 2048):
            turned = ops.encode_rotated(x, levels, bits, size, norm, 2**63 + 1, 2**64 - 1, 3)
            yield f"encode_rotated {norm} {size}", turned
        yield f"decode {norm}", ops.decode(payload, levels, n, bits, bucket)
        yield f"decode_sum {norm}", ops.decode_sum(payload.repeat(3, 1), levels, n, bits, bucket, 1 / 3)
    for inverse in (False, True):
        yield f"hadamard {inverse}", ops.hadamard(x.float()[: n // 2 * 2], 2, 1, 2, inverse)
        yield f"hadamard {inverse} long", ops.hadamard(x.float().repeat(16384 // n + 1)[:16384], 16384, 1, 2, inverse)

    yield from everything_of_blocks(x.nan_to_num(), 64 if bucket < 1024 else 2048)


def everything_of_blocks(x: torch.Tensor, block_size: int):
    """Likewise, of rotated blocks."""
    n, (_, factors, widths, begins, table, planes) = x.numel(), some_blocks(x.numel(), block_size, x.dtype, 5)
    codes, dots = eden.eden_encode(x, factors, widths, begins, table, planes, block_size, 2**63 + 1, 2**64 - 1)
    yield from (("eden_encode codes", codes), ("eden_encode dots", dots))
    row = (factors[None], widths[None], begins[None])
    rows, seeds = [one.repeat(2, 1) for one in (codes[None], *row)], torch.tensor([3, -3])
    yield "eden_decode_sum", eden.eden_decode_sum(*rows, table, n, block_size, seeds, 2, 0.5)
    of_norms = x.abs().float(), tables.edges(), tables.dithers(), tables.scales()
    largest, norm_codes, meant = allocation.block_norm_codes(*of_norms, 2**63 + 1, 3)
    yield from (("largest", largest), ("block_norm_codes", norm_codes), ("block_norm_codes meant", meant))
    yield "block_norms", allocation.block_norms(norm_codes[None], largest, tables.scales(), seeds[1:], 3)
    widths, begins = allocation.block_widths(norm_codes[None], tables.order_of(0.5), 2 * n)
    yield from (("block_widths", widths), ("block_widths begins", begins))


@pytest.mark.parametrize(("n", "bits", "bucket"), [(6200, 3, 2048), (2100, 5, 1025), (515, 8, 7), (1000, 2, 100)])
def test_every_order_gives_the_same_bytes(n, bits, bucket):
    x = data(n, DTYPES[bits % 3], n)
    x[n // 2] = float("nan")
    settings("random")
    expected = dict(everything(x, bits, bucket))
    for seed, (order, most_blocks) in enumerate([("random", 1), ("highest", 2), ("lowest", 1), ("random", 3)], start=1):
        settings(order, most_blocks, seed=seed)
        for operator, found in everything(x, bits, bucket):
            assert same(found, expected[operator]), f"{operator}: other bytes in order {order}, {most_blocks} blocks"


def tail_of(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """n coordinates, of which all but the last few are zeros that take no memory; and these last ones."""
    try:
        zeros = np.zeros(n, dtype=np.float32 if dtype == torch.float32 else np.int16)
    except MemoryError:
        pytest.skip(f"{n} coordinates are more than may be asked for here")
    x = torch.from_numpy(zeros).view(dtype)
    x[-TAIL:] = data(TAIL, dtype)
    return x, x[-TAIL:]


def shifted(monkeypatch, before: int, of_a_call: int = 8) -> None:
    """The reference's random numbers are those of coordinates that come after `before` others, of which a call has
    `of_a_call`."""
    whole = reference.philox

    def philox(counter, seed, offset):
        return whole(counter + before // of_a_call, seed, offset)

    monkeypatch.setattr(reference, "philox", philox)


@pytest.mark.parametrize("many", [2**31, 2**32])
def test_norms_of_more_than_32_bits_of_coordinates(many):
    x, tail = tail_of(many + TAIL, torch.bfloat16)
    settings("random", last_blocks=3)
    for bucket, norm in ((8192, "l2"), (256, "linf")):
        found, expected = ops.bucket_norms(x, bucket, norm)[-3:], reference.bucket_norms(tail, bucket, norm)[-3:]
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)
    for found, expected in zip(
        ops.bucket_statistics(x, 8192, "l2"), reference.bucket_statistics(tail, 8192, "l2"), strict=True
    ):
        torch.testing.assert_close(found[-3:], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("many", [2**31, 2**32])
@pytest.mark.parametrize("bucket", [256, 8192, 1 << 14, 1000 * 2**10])
def test_codes_of_more_than_32_bits_of_coordinates(many, bucket, monkeypatch):
    """Of 2**31 coordinates those at the end; the norms before them are never read."""
    many -= many % bucket
    x, tail = tail_of(many + TAIL, torch.bfloat16)
    settings("random", last_blocks=9)
    levels, norms = some_levels(1), torch.ones(-(-x.numel() // bucket))
    norms[-3:] = torch.tensor([1.0, 2.0, 3.0])
    buckets = -(-TAIL // bucket)
    shifted(monkeypatch, many)
    held = 8192
    codes = reference.encode(tail, norms[-buckets:], levels, 1, bucket, 1, 2)[-held // 8 :]
    assert same(ops.encode(x, norms, levels, 1, bucket, 1, 2)[-held // 8 :], codes)
    if bucket <= 1 << 14:
        fused = ops.encode_fused(x, levels, 1, bucket, "linf", 1, 2)
        expected = reference.encode_fused(tail, levels, 1, bucket, "linf", 1, 2)
        assert same(fused[-held // 8 :], expected[-held // 8 :])


@pytest.mark.parametrize("bucket", [256, 8192])
def test_rotated_codes_of_more_than_31_bits_of_coordinates(bucket, monkeypatch):
    many, held = 2**31, 8192
    x, tail = tail_of(many + TAIL, torch.bfloat16)
    settings("random", last_blocks=9)
    padded = torch.nn.functional.pad(tail.float(), (0, -TAIL % bucket))
    with monkeypatch.context() as patched:
        shifted(patched, many, of_a_call=128)
        rotated = reference.hadamard(padded, bucket, 3, 2, False)
    shifted(monkeypatch, many)
    expected = reference.encode_fused(rotated, some_levels(1), 1, bucket, "linf", 1, 2)
    found = ops.encode_rotated(x, some_levels(1), 1, bucket, "linf", 1, 2, 3)
    assert same(found[-held // 8 :], expected[-held // 8 :])


def test_decoding_more_than_31_bits_of_coordinates():
    many, bucket, held = 2**31, 8192, 8192
    n = many + TAIL
    head = ops.norm_bytes(n, bucket)
    payload = torch.from_numpy(np.zeros(head + ops.code_bytes(n, 1), dtype=np.uint8))
    tail = reference.encode_fused(data(TAIL, torch.float32), some_levels(1), 1, bucket, "linf", 1, 2)
    small = ops.norm_bytes(TAIL, bucket)
    payload[head - small : head], payload[small - tail.numel() :] = tail[:small], tail[small:]
    settings("random", last_blocks=9)
    expected = reference.decode(tail, some_levels(1), TAIL, 1, bucket)[-held:]
    for decode in (
        lambda: ops.decode(payload, some_levels(1), n, 1, bucket),
        lambda: ops.decode_sum(payload[None], some_levels(1), n, 1, bucket, 1.0),
    ):
        try:
            found = decode()
        except RuntimeError as error:
            pytest.skip(f"the decoded coordinates do not fit here: {error}")
        assert same(found[-held:], expected)


@pytest.mark.parametrize("block", [4, 1 << 14])
@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard_of_more_than_31_bits_of_coordinates(block, inverse, monkeypatch):
    x, _ = tail_of(2**31 + (1 << 14), torch.float32)
    settings("random", last_blocks=64 if block > 4 else 3)
    try:
        found = ops.hadamard(x, block, 1, 2, inverse)
    except RuntimeError as error:
        pytest.skip(f"the transformed coordinates do not fit here: {error}")
    held = block if block > 4 else 12
    shifted(monkeypatch, 2**31, of_a_call=128)
    assert same(found[-held:], reference.hadamard(x[2**31 :], block, 1, 2, inverse)[-held:])


TAIL_BLOCKS = -(-TAIL // 8192)


def test_codes_of_blocks_of_more_than_31_bits_of_coordinates(monkeypatch):
    """Blocks before the last ones have no codes."""
    many = 2**31
    x, tail = tail_of(many + TAIL, torch.bfloat16)
    settings("random", last_blocks=TAIL_BLOCKS)
    factors, widths, begins, table, planes = some_blocks(TAIL, 8192, torch.bfloat16, 5)[1:]
    before = many // 8192
    first = [torch.nn.functional.pad(one, (before, 0)) for one in (factors, widths, begins)]
    codes, dots = eden.eden_encode(x, *first, table, planes, 8192, 1, 2)
    scales, wide, begin = (one[None] for one in first)
    try:
        mean = eden.eden_decode_sum(codes[None], scales, wide, begin, table, x.numel(), 8192, torch.tensor([1]), 2, 1.0)
    except RuntimeError as error:
        pytest.skip(f"the decoded coordinates do not fit here: {error}")
    shifted(monkeypatch, many, of_a_call=128)
    expected = eden._encode(tail, factors, widths, begins, table, planes, 8192, 1, 2)
    assert same(codes, expected[0])
    assert same(dots[-TAIL_BLOCKS:], expected[1])
    rows = codes[None], factors[None], widths[None], begins[None]
    assert same(mean[-TAIL:], eden._decode_sum(*rows, table, TAIL, 8192, torch.tensor([1]), 2, 1.0))


def test_codes_of_blocks_of_more_than_31_bits_of_words():
    x, factors, widths, begins, table, planes = some_blocks(200, 64, torch.float32, 5)
    few, _ = eden.eden_encode(x, factors, widths, begins, table, planes, 64, 1, 2)
    before = 2**31 // 2 + 1  # planes of two words
    try:
        codes = torch.from_numpy(np.zeros(8 * before + few.numel(), dtype=np.uint8))
    except MemoryError:
        pytest.skip("eight gigabytes are more than may be asked for here")
    codes[8 * before :] = few
    row, rest = (factors[None], widths[None]), (table, 200, 64, torch.tensor([1]), 2, 1.0)
    settings("random")
    found = eden.eden_decode_sum(codes[None], *row, begins[None] + before, *rest)
    assert same(found, eden._decode_sum(few[None], *row, begins[None], *rest))


def test_what_is_no_norm_code_in_an_order_is_one_of_fewer_bits():
    """The host does not see it, and no memory is touched by it."""
    codes = torch.randint(1, 9, (1, 100), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    order = torch.tensor([[300, -251, 5, 2**40 + 7], [1, 1, 1, 1]])
    settings("random")
    found = allocation.block_widths(codes, order, 130)
    assert all(map(same, found, allocation._widths(codes, order & 255, 130)))
