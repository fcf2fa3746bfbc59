"""The operators' contract. Byte-exact answers here define the wire format that every backend must produce."""

import math
import struct

import pytest
import torch
from scipy.linalg import hadamard

from lqray import ops
from lqray.ops import reference

UNIFORM = torch.linspace(-1, 1, 8)
EXPONENTIAL = torch.tensor([-1, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1])
TERNARY = torch.tensor([-1.0, 0.0, 1.0])
SIZES = [0, 1, 31, 32, 33, 63, 64, 65, 127, 257, 1009]


def roundtrip(x, levels=UNIFORM, bits=3, bucket_size=64, norm="l2", seed=1, offset=2):
    payload = ops.encode_fused(x, levels, bits, bucket_size, norm, seed, offset)
    return ops.decode(payload, levels, x.numel(), bits, bucket_size)


@pytest.mark.parametrize(
    ("counter", "seed", "offset", "words"),
    [
        (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (-1, 2**64 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x85A308D3243F6A88, 0x299F31D0A4093822, 0x0370734413198A2E, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, seed, offset, words):
    """Random123's kat_vectors, philox4x32 with 10 rounds."""
    signed = counter - 2**64 if counter >= 2**63 else counter
    found = reference.philox(torch.tensor([signed]), seed, offset)[:, 0].tolist()
    assert [f"{word:08x}" for word in found] == words.split()


def test_each_coordinate_takes_its_own_word():
    """Written out from the format: coordinate 256 t + 32 j + lane."""
    uniforms = reference.uniforms(600, 3, 4)
    for coordinate in (0, 31, 32, 33, 64, 255, 256, 500, 599):
        tile, within = divmod(coordinate, 256)
        j, lane = divmod(within, 32)
        word = int(reference.philox(torch.tensor([32 * tile + lane]), 3, 4)[j // 2, 0])
        if j % 2:
            word = (word << 16 | word >> 16) & 0xFFFFFFFF
        assert float(uniforms[coordinate]) == (word >> 8) / 2**24


def test_each_coordinate_takes_its_own_bit_for_its_sign():
    """Written out from the format: coordinate 4096 t + 1024 m + 32 k + lane."""
    signs = reference.signs(9000, 3, 4)
    for coordinate in (0, 31, 32, 1023, 1024, 4095, 4096, 5000, 8191, 8192, 8999):
        tile, within = divmod(coordinate, 4096)
        m, row, lane = within // 1024, within // 32 % 32, within % 32
        word = int(reference.philox(torch.tensor([32 * tile + lane]), 3, 4)[m, 0])
        assert float(signs[coordinate]) == (-1 if word >> row & 1 else 1)


def test_signs_are_even_and_do_not_repeat():
    signs = reference.signs(1_000_000, 5, 6)
    assert signs.abs().eq(1).all()
    assert abs(float(signs.double().mean())) < 5 * math.sqrt(1 / 1e6)
    for apart in (1, 32, 1024, 4096):
        assert abs(float((signs[apart:] * signs[:-apart]).double().mean())) < 5 * math.sqrt(1 / 0.99e6)
    assert not torch.equal(signs, reference.signs(1_000_000, 5, 7))
    assert not torch.equal(signs, reference.signs(1_000_000, 6, 6))


def test_uniforms_are_uniform_and_do_not_repeat():
    u = reference.uniforms(1_000_000, 5, 6)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    # Mean and second moment of U(0, 1) within five standard errors: an error rate below 1e-6.
    assert abs(float(u.double().mean()) - 1 / 2) < 5 * math.sqrt(1 / 12 / 1e6)
    assert abs(float(u.double().square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / 1e6)
    assert not torch.equal(u, reference.uniforms(1_000_000, 5, 7))
    assert not torch.equal(u, reference.uniforms(1_000_000, 6, 6))


def test_payload_layout():
    """Norms first, little-endian; then for each group of 32 one little-endian word for each plane."""
    x = torch.tensor([3.0, -4.0] + [0.0] * 32)
    payload = ops.encode_fused(x, TERNARY, 2, 2, "linf", 0, 0)
    assert payload.numel() == 4 * 17 + 4 * 2 * 2
    norms = struct.unpack("<17f", bytes(payload[:68].tolist()))
    assert norms == (4.0,) + (0.0,) * 16
    planes = struct.unpack("<4I", bytes(payload[68:].tolist()))
    codes = ops.unpack(payload[68:], 34, 2).tolist()
    for group in range(2):
        for bit in range(2):
            word = sum((code >> bit & 1) << i for i, code in enumerate(codes[32 * group : 32 * group + 32]))
            assert planes[2 * group + bit] == word
    assert codes[1] == 0
    assert codes[2:] == [1] * 32


def test_a_payload_to_the_byte():
    """A golden payload: any change of format or arithmetic shows here."""
    x = torch.arange(-5, 6, dtype=torch.float32) / 4
    payload = ops.encode_fused(x, EXPONENTIAL, 3, 4, "l2", 0x0123456789ABCDEF, 0xFEDCBA9876543210)
    assert bytes(payload.tolist()).hex() == GOLDEN


GOLDEN = "a926eb3f71c41c3f3046e23f94020000c8070000e0070000"


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_pack_and_unpack_are_inverse(n, bits):
    codes = torch.randint(0, 2**bits, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    packed = reference.pack(codes, bits)
    assert packed.numel() == ops.code_bytes(n, bits)
    assert torch.equal(ops.unpack(packed, n, bits), codes)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("bucket_size", [1, 7, 32, 64, 4096])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_error_is_at_most_a_level_gap_times_the_norm(n, bucket_size, norm):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    decoded = roundtrip(x, bucket_size=bucket_size, norm=norm)
    assert decoded.shape == x.shape
    norms = ops.bucket_norms(x, bucket_size, norm).repeat_interleave(bucket_size)[:n]
    assert torch.all((decoded - x).abs() <= norms * (2 / 7) * 1.00001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_are_encoded_as_their_float32_values(dtype):
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(dtype)
    same = ops.encode_fused(x.float(), UNIFORM, 3, 64, "l2", 1, 2)
    assert torch.equal(ops.encode_fused(x, UNIFORM, 3, 64, "l2", 1, 2), same)


def test_non_contiguous_input():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))[::2]
    assert torch.equal(roundtrip(x), roundtrip(x.contiguous()))


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-38, 1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rounding_is_unbiased_at_any_scale(scale, norm):
    """2^21 roundings of 16 values: each mean within five standard errors (error rate below 1e-5 over all values)."""
    values = torch.tensor([3, -1, 0.5, 2, -2.5, 0.1, 0, 1, -3, 0.7, -0.2, 1.5, 2.2, -1.1, 0.9, 0.05]) * scale
    repeats = 131_072
    x = values.repeat(repeats)
    decoded = roundtrip(x, levels=EXPONENTIAL, bucket_size=16, norm=norm).view(repeats, 16).double()
    spread = decoded.std(dim=0).clamp(min=1e-300)
    # Subnormal numbers are rounded to multiples of 2^-149 once more when decoded.
    grain = 2.0**-149
    assert torch.all((decoded.mean(dim=0) - values.double()).abs() <= 5 * spread / math.sqrt(repeats) + grain)


def test_levels_are_exact():
    for levels in (UNIFORM, EXPONENTIAL):
        x = torch.cat([levels, torch.tensor([1.0])])
        assert torch.equal(roundtrip(x, levels, norm="linf"), x)


def test_zero_buckets_decode_to_zeros():
    x = torch.cat([torch.zeros(64), torch.ones(64), torch.zeros(5)])
    decoded = roundtrip(x)
    assert torch.all(decoded[:64] == 0)
    assert torch.all(decoded[128:] == 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("levels", "bits"), [(UNIFORM, 3), (TERNARY, 2)])
def test_nan_and_infinity_surface_as_nan_in_their_bucket_only(bad, norm, levels, bits):
    x = torch.ones(200)
    x[70] = bad
    decoded = roundtrip(x, levels, bits, norm=norm)
    assert torch.all(decoded[64:128].isnan())
    assert torch.all(decoded[:64].isfinite())
    assert torch.all(decoded[128:].isfinite())


def test_norms_do_not_under_or_overflow_on_the_way():
    assert float(ops.bucket_norms(torch.full((4,), 1e-30), 4, "l2")) == pytest.approx(2e-30)
    assert float(ops.bucket_norms(torch.full((4,), 1e30), 4, "l2")) == pytest.approx(2e30)
    assert float(ops.bucket_norms(torch.full((4,), 3e38), 4, "linf")) == pytest.approx(3e38)
    assert math.isnan(float(ops.bucket_norms(torch.full((4,), 3e38), 4, "l2")))


def test_decode_sum_adds_in_the_order_of_rows():
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    payloads = torch.stack([ops.encode_fused(row, UNIFORM, 3, 64, "l2", 1, i) for i, row in enumerate(x)])
    each = [ops.decode(payload, UNIFORM, 100, 3, 64) for payload in payloads]
    expected = (((torch.zeros(100) + each[0]) + each[1]) + each[2]) * (1 / 3)
    assert torch.equal(ops.decode_sum(payloads, UNIFORM, 100, 3, 64, 1 / 3), expected)


def test_a_code_beyond_the_last_level_decodes_as_the_last():
    payload = torch.cat([torch.ones(1).view(torch.uint8), torch.full((8,), 255, dtype=torch.uint8)])
    assert torch.all(ops.decode(payload, TERNARY, 32, 2, 32) == 1)


@pytest.mark.parametrize("cut", [-1, 1, 4])
def test_a_payload_of_wrong_length_is_an_error(cut):
    payload = ops.encode_fused(torch.ones(100), UNIFORM, 3, 64, "l2", 1, 2)
    wrong = payload[:-cut] if cut > 0 else torch.cat([payload, payload[:1]])
    with pytest.raises(ValueError, match=r"56 *bytes|with 56"):
        ops.decode(wrong, UNIFORM, 100, 3, 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.encode_fused(x.view(2, 5), UNIFORM, 3, 4, "l2", 0, 0), "one dimension"),
        (lambda x: ops.encode_fused(x.double(), UNIFORM, 3, 4, "l2", 0, 0), "float64"),
        (lambda x: ops.encode_fused(x, UNIFORM, 3, 0, "l2", 0, 0), "bucket_size is 0"),
        (lambda x: ops.encode_fused(x, UNIFORM, 3, 4, "l1", 0, 0), "'l1'"),
        (lambda x: ops.encode_fused(x, UNIFORM, 9, 4, "l2", 0, 0), "bits is 9"),
        (lambda x: ops.encode_fused(x, UNIFORM, 2, 4, "l2", 0, 0), "levels"),
        (lambda x: ops.encode_fused(x, UNIFORM, 3, 4, "l2", -1, 0), "unsigned"),
        (lambda x: ops.encode(x, torch.ones(2), UNIFORM, 3, 4, 0, 0), "one norm for each bucket"),
        (lambda x: ops.bucket_statistics(x, 0, "l2"), "bucket_size is 0"),
        (lambda x: ops.hadamard(x, 4, 0, 0), "power of two that divides"),
        (lambda x: ops.hadamard(x, 5, 0, 0), "power of two"),
        (lambda x: ops.hadamard(x.half(), 2, 0, 0), "float32"),
    ],
)
def test_bad_arguments_name_operator_argument_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(10))


def test_opcheck():
    x = torch.randn(100)
    norms = ops.bucket_norms(x, 64, "l2")
    payload = ops.encode_fused(x, UNIFORM, 3, 64, "l2", 1, 2)
    calls = {
        "bucket_norms": (x, 64, "l2"),
        "encode": (x, norms, UNIFORM, 3, 64, 1, 2),
        "encode_fused": (x, UNIFORM, 3, 64, "l2", 1, 2),
        "encode_rotated": (x, UNIFORM, 3, 64, "l2", 1, 2, 3),
        "decode": (payload, UNIFORM, 100, 3, 64),
        "decode_sum": (torch.stack([payload, payload]), UNIFORM, 100, 3, 64, 0.5),
        "bucket_statistics": (x, 64, "linf"),
        "hadamard": (torch.randn(128), 64, 1, 2, False),
    }
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.lqray, name).default, arguments)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-38, 1e25])
@pytest.mark.parametrize("shift", [0.0, 0.3, 1e4])
def test_bucket_statistics_are_those_of_float64(norm, scale, shift):
    x = (torch.randn(64 * 5 + 7, generator=torch.Generator().manual_seed(1)) + shift) * scale
    norms, means, sigmas = ops.bucket_statistics(x, 64, norm)
    assert norms.dtype == means.dtype == sigmas.dtype == torch.float64
    assert torch.allclose(norms, ops.bucket_norms(x, 64, norm).double(), rtol=2e-7, atol=0)
    for bucket, values in enumerate(x.double().split(64)):
        assert float(means[bucket] * norms[bucket]) == pytest.approx(float(values.mean()), rel=2e-5, abs=1e-6 * scale)
        assert float(sigmas[bucket] * norms[bucket]) == pytest.approx(float(values.std()), rel=2e-5)


def test_bucket_statistics_of_odd_buckets():
    x = torch.tensor([2.0, 2.0, 0.0, 0.0, torch.nan, 1.0, 1.0, torch.inf, 3.0])
    norms, means, sigmas = ops.bucket_statistics(x, 2, "l2")
    assert norms[[0, 1, 4]].tolist() == pytest.approx([8**0.5, 0.0, 3.0])
    assert means[[0, 1, 4]].tolist() == pytest.approx([0.5**0.5, 0.0, 1.0])
    assert sigmas[[0, 1, 4]].tolist() == [0.0, 0.0, 0.0]
    assert norms[[2, 3]].isnan().all()
    assert ops.bucket_statistics(x[:0], 2, "linf")[0].shape == (0,)
    assert ops.bucket_statistics(torch.ones(8192 * 3), 8192, "l2")[2].tolist() == [0.0] * 3


@pytest.mark.parametrize("block", [1, 2, 64, 1024])
def test_hadamard_is_the_signed_orthonormal_transform(block):
    x = torch.randn(3 * block, generator=torch.Generator().manual_seed(1))
    turned = ops.hadamard(x, block, seed=5, offset=6)
    signs = reference.signs(3 * block, 5, 6).double()
    matrix = torch.from_numpy(hadamard(block)).double() / block**0.5
    expected = (matrix @ (x.double() * signs).view(3, block).T).T.reshape(-1)
    torch.testing.assert_close(turned.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ops.hadamard(turned, block, seed=5, offset=6, inverse=True), x, rtol=1e-5, atol=1e-6)
    if block > 2:
        assert not torch.equal(turned, ops.hadamard(x, block, seed=5, offset=7))
