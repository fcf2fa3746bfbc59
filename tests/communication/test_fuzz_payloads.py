"""Mutants of what travels, against every decoder: a ValueError, or numbers of the right shape; never a crash.

Run once more by tests/ops/test_sanitized.py, under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import dataclasses
import random
from functools import partial

import numpy as np
import pytest
import torch

from lqray import ops
from lqray.communication.reductions.all_gather import _means
from lqray.communication.wire.parcel import CheckWords, LevelsDifferError, Parcel, check_of
from lqray.communication.wire.transport import CodePlanes, _check_lengths, _expand, _expanded, _squeeze, _squeezed
from lqray.communication.wire.volume import Volume
from lqray.quantization import Payload, Quantizer, rans
from tests.testing.fuzzing import limits, mutants

pytestmark = pytest.mark.fuzz

SIZES = [0, 1, 31, 32, 33, 64, 100, 257, 4097]
QUANTIZERS = [
    {"method": "qsgd_inf", "bits": 3},
    {"method": "qsgd", "bits": 1},
    {"method": "nuqsgd", "bits": 8},
    {"method": "terngrad", "clip": 2.5},
    {"method": "alq", "bits": 4, "tail": "full_precision"},
    {"method": "qsgd_inf", "bits": 5, "rotation": "hadamard"},
    {"method": "qsgd_inf", "bits": 2, "rotation": "hadamard", "tail": "full_precision"},
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _bounded():
    with limits(seconds=300, mebibytes=2000):
        yield


def mutated(good: np.ndarray, chosen: random.Random) -> np.ndarray:
    """Bytes: cut, lengthened, with flipped bits, in another order, or others altogether."""
    some = np.frombuffer(chosen.randbytes(max(1, good.size)), dtype=np.uint8)
    what = chosen.randrange(7)
    if what == 0:
        return good[: chosen.randrange(good.size + 1)].copy()
    if what == 1:
        return np.concatenate([good, some[: chosen.randint(1, 40)]])
    if what == 2 and good.size:
        bits = np.unpackbits(good)
        for _ in range(chosen.choice([1, 1, 2, 8, 64])):
            bits[chosen.randrange(bits.size)] ^= 1
        return np.packbits(bits)
    if what == 3:
        return some[: good.size].copy()
    if what == 4:
        return np.full(good.size, chosen.choice([0, 255, 127, 128]), dtype=np.uint8)
    if what == 5:
        return np.roll(good, chosen.randint(-9, 9))
    return some[: chosen.randrange(some.size + 1)].copy()


def encoded(chosen: random.Random) -> tuple[Quantizer, Payload]:
    quantizer = Quantizer.create(**chosen.choice(QUANTIZERS), bucket_size=chosen.choice([1, 32, 64, 256]))
    tensor = torch.randn(chosen.choice(SIZES), generator=torch.Generator().manual_seed(chosen.randrange(2**31)))
    return quantizer, quantizer.encode(tensor.to(chosen.choice(DTYPES)), seed=1, offset=2)


def is_right(found: torch.Tensor, payload: Payload) -> bool:
    return found.shape == (payload.n,) and found.dtype == payload.dtype


def test_a_mutant_of_a_payload_is_decoded_or_refused():
    became = set()
    for _, chosen in mutants("payloads"):
        quantizer, payload = encoded(chosen)
        wrong = torch.from_numpy(mutated(payload.buffer.numpy(), chosen))
        mutant = dataclasses.replace(payload, buffer=wrong)
        if chosen.random() < 0.3:  # what is said of the bytes is wrong
            key = chosen.choice(["n", "bits", "bucket_size", "tail"])
            mutant = dataclasses.replace(mutant, **{key: chosen.choice([-1, 0, 1, 3, 9, 63, 64, 2**20, 2**62])})
        try:
            assert is_right(quantizer.decode(mutant), mutant)
            assert mutant.codes.shape == (mutant.coded,)
            assert mutant.entropy_bits() >= 0
            became.add("decoded")
        except ValueError:
            became.add("refused")
    assert became == {"decoded", "refused"}


def test_a_mutant_of_an_operators_payload_is_decoded_or_refused():
    for _, chosen in mutants("operators"):
        n, bits, bucket = chosen.choice(SIZES), chosen.randint(1, 8), chosen.choice([1, 32, 64, 1000])
        levels = torch.linspace(-1, 1, chosen.randint(2, 2**bits))
        good = ops.encode_fused(torch.randn(n), levels, bits, bucket, "linf", 1, 2)
        wrong = torch.from_numpy(mutated(good.numpy(), chosen))
        for call in (
            partial(ops.decode, wrong, levels, n, bits, bucket),
            partial(ops.decode_sum, torch.stack([wrong, wrong]), levels, n, bits, bucket, 0.5),
            partial(ops.decode_sum, wrong[None], levels, n, bits, bucket, 1.0, torch.randn(n)),
        ):
            try:
                found = call()
            except ValueError:
                continue
            assert found.shape == (n,)
            assert wrong.numel() == good.numel()


def test_mutants_of_gathered_rows_are_averaged_or_refused():
    for _, chosen in mutants("rows"):
        quantizer, payload = encoded(chosen)
        parcel = Parcel([[payload]], [1], check_of(quantizer.fingerprint(), 2), names=["x"])
        good = torch.cat([payload.buffer, parcel.check_word()])
        wrong = torch.from_numpy(mutated(good.numpy(), chosen))
        rows = torch.stack([wrong] * 2) if wrong.numel() != good.numel() else torch.stack([good, wrong])
        try:
            (mean,) = _means(rows, parcel, quantizer, Volume(), CheckWords())
        except (ValueError, LevelsDifferError):
            continue
        assert is_right(mean, payload)


def test_a_mutant_of_an_entropy_coded_stream_is_codes_or_refused():
    became = set()
    for _, chosen in mutants("streams"):
        n, bits = chosen.choice(SIZES), chosen.randint(1, 8)
        drawn = np.random.default_rng(chosen.randrange(2**31)).binomial(2**bits - 1, 0.4, n).astype(np.uint8)
        classes = torch.arange(-(-n // 50)) % 3 if chosen.random() < 0.5 else None
        wrong = torch.from_numpy(mutated(rans.encode(torch.from_numpy(drawn), bits, classes, 50).numpy(), chosen))
        asked, planes = (n, bits) if chosen.random() < 0.7 else (chosen.choice([*SIZES, -1]), chosen.randint(0, 9))
        try:
            found = rans.decode(wrong, asked, planes, classes, 50)
            assert found.shape == (asked,)
            assert found.dtype == torch.uint8
            assert not asked or int(found.max()) < 2**planes
            became.add("decoded")
        except ValueError:
            became.add("refused")
    assert "refused" in became


def test_a_mutant_of_an_entropy_coded_row_is_a_row_or_refused():
    for _, chosen in mutants("coded rows"):
        _, payload = encoded(chosen)
        row = np.concatenate([payload.buffer.numpy(), np.arange(4, dtype=np.uint8)])
        pieces = [CodePlanes(payload.norm_bytes, payload.coded, payload.bits)]
        assert np.array_equal(_expand(_squeeze(row, pieces), pieces, row.size), row)
        try:
            found = _expand(mutated(_squeeze(row, pieces), chosen), pieces, row.size)
            assert found.shape == row.shape
        except ValueError:
            pass
        stream, lengths = _squeezed(torch.from_numpy(np.stack([row, row])), [pieces, pieces])
        said = [chosen.choice([-1, 0, 3, 2**40, *lengths]) for _ in lengths]
        try:
            _check_lengths(torch.tensor([said]), row.size, [pieces])
            found = _expanded([mutated(stream, chosen)], [said], [pieces, pieces], row.size)
            assert found.shape == (2, row.size)
        except ValueError:
            pass
