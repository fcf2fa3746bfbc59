"""Numbers and tensors that no caller should pass, to every operator of every backend: an error each time, no crash.

They are tried in processes of their own, since a crash would end the tests as well.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lqray import ops
from lqray.quantization import Quantizer
from lqray.quantization.codec import LevelPayload

ROOT = Path(__file__).parents[2]
NUMBERS = [0, -1, 1, 3, 2**31, 2**32 + 1, 2**62, 2**63 - 1, -(2**63)]
NATIVE = pytest.mark.skipif(ops.loaded.path is None, reason=f"no native library: {ops.loaded.reason}")


def calls(device: str):
    """(operator, good arguments, those of them that are tried): every number tried is one that must be refused, or one
    for which a tensor comes back."""
    x, norms = torch.ones(64, device=device), torch.ones(2, device=device)
    levels = torch.linspace(-1, 1, 8, device=device)
    payload = torch.zeros(8 + 24, dtype=torch.uint8, device=device)
    none, empty = x[:0], payload[:0]
    coded, looked = {"levels": levels, "bits": 3, "bucket_size": 32}, {"bucket_size": 32, "norm": "l2"}
    summed = coded | {"scale": 0.5, "add": None}
    for name, good in [
        ("bucket_norms", {"x": x} | looked),
        ("bucket_norms", {"x": none} | looked),
        ("bucket_statistics", {"x": x} | looked),
        ("bucket_statistics", {"x": none} | looked),
        ("encode", {"x": x, "norms": norms} | coded),
        ("encode", {"x": x, "norms": none} | coded),
        ("encode", {"x": none, "norms": none} | coded),
        ("encode_fused", {"x": x, "norm": "l2"} | coded),
        ("encode_rotated", {"x": x, "norm": "l2"} | coded),
        ("decode", {"payload": payload, "n": 64} | coded),
        ("decode", {"payload": empty, "n": 0} | coded),
        ("decode_sum", {"payloads": payload.view(1, -1), "n": 64} | summed),
        ("decode_sum", {"payloads": empty.view(1, 0), "n": 0} | summed),
        ("hadamard", {"x": x, "block_size": 32}),
        ("hadamard", {"x": none, "block_size": 32}),
    ]:
        yield name, good, [number for number in ("n", "bits", "bucket_size", "block_size") if number in good]


def wrong_tensors(device: str):
    """(what is wrong, operator, arguments)."""
    x, norms = torch.ones(64, device=device), torch.ones(2, device=device)
    levels = torch.linspace(-1, 1, 8, device=device)
    payload = torch.zeros(8 + 24, dtype=torch.uint8, device=device)
    elsewhere = "meta" if device == "cpu" else "cpu"
    encode = {"x": x, "norms": norms, "levels": levels, "bits": 3, "bucket_size": 32}
    coded = {name: value for name, value in encode.items() if name != "norms"} | {"norm": "l2"}
    decode = {"payload": payload, "levels": levels, "n": 64, "bits": 3, "bucket_size": 32}
    many = {"payloads": payload.view(1, -1), "levels": levels, "n": 64, "bits": 3, "bucket_size": 32, "scale": 1.0}
    many["add"] = None
    for name, wrong in {
        "float64": x.double(),
        "integers": x.long(),
        "two dimensions": x.view(8, 8),
        "no dimension": x[0],
        "longer than any memory": x[:1].expand(2**62),
        "longer than the bound": x[:1].expand(2**48 + 1),
        "sparse": x.to_sparse() if device == "cpu" else x.long(),
    }.items():
        yield f"x: {name}", "encode", encode | {"x": wrong}
        yield f"x: {name}", "encode_fused", coded | {"x": wrong}
        yield f"x: {name}", "encode_rotated", coded | {"x": wrong}
        yield f"x: {name}", "bucket_norms", {"x": wrong, "bucket_size": 32, "norm": "linf"}
        yield f"x: {name}", "bucket_statistics", {"x": wrong, "bucket_size": 32, "norm": "linf"}
        yield f"x: {name}", "hadamard", {"x": wrong, "block_size": 32}
    for name, wrong in {
        "one": norms[:1],
        "none": norms[:0],
        "too many": torch.ones(3, device=device),
        "float64": norms.double(),
        "two dimensions": norms.view(1, 2),
        "elsewhere": torch.ones_like(norms, device=elsewhere),
    }.items():
        yield f"norms: {name}", "encode", encode | {"norms": wrong}
    for name, wrong in {
        "one": levels[:1],
        "none": levels[:0],
        "nine": torch.linspace(-1, 1, 9, device=device),
        "float64": levels.double(),
        "two dimensions": levels.view(2, 4),
        "elsewhere": torch.ones_like(levels, device=elsewhere),
    }.items():
        yield f"levels: {name}", "encode", encode | {"levels": wrong}
        yield f"levels: {name}", "decode", decode | {"levels": wrong}
        yield f"levels: {name}", "decode_sum", many | {"levels": wrong}
    if device == "cpu":  # what is in a tensor is not known of others
        for name, wrong in {
            "descending": levels.flip(0),
            "equal": torch.zeros(8),
            "NaN": torch.full((8,), float("nan")),
            "infinite": torch.tensor([-float("inf"), 0.0, float("inf")]),
        }.items():
            yield f"levels: {name}", "encode", encode | {"levels": wrong}
            yield f"levels: {name}", "decode", decode | {"levels": wrong}
            yield f"levels: {name}", "decode_sum", many | {"levels": wrong}
    for name, wrong in {
        "shorter": payload[:-1],
        "longer": torch.zeros(33, dtype=torch.uint8, device=device),
        "int8": payload.to(torch.int8),
        "two dimensions": payload.view(1, -1),
        "longer than any memory": payload[:1].expand(2**62),
    }.items():
        yield f"payload: {name}", "decode", decode | {"payload": wrong}
        if name != "two dimensions":
            yield f"payload: {name}", "decode_sum", many | {"payloads": wrong.view(1, -1)}
    yield "payloads: one dimension", "decode_sum", many | {"payloads": payload}
    yield "payloads: none", "decode_sum", many | {"payloads": payload.view(1, -1)[:0]}
    for scale in (float("nan"), float("inf"), 1e39):
        yield f"scale: {scale}", "decode_sum", many | {"scale": scale}
    for name, wrong in {
        "short": x[:63],
        "float64": x.double(),
        "elsewhere": torch.ones_like(x, device=elsewhere),
    }.items():
        yield f"add: {name}", "decode_sum", many | {"add": wrong}


def outcome(function, arguments) -> str:
    """The sizes of what comes back, or "refused"."""
    try:
        result = function(**arguments)
    except (ValueError, RuntimeError, NotImplementedError):
        return "refused"
    return str([tuple(one.shape) for one in (result if isinstance(result, tuple) else (result,))])


def attempt(device: str) -> dict[str, str]:
    """Every call and what became of it."""
    found = {}
    for number, (name, good, tried) in enumerate(calls(device)):
        keyed = name.startswith("encode") or name == "hadamard"
        own = {"hadamard": {"inverse": True}, "encode_rotated": {"rotation": 3}}.get(name, {})
        rest = ({"seed": -1, "offset": -(2**63)} if keyed else {}) | own
        raw, wrapped = getattr(torch.ops.lqray, name), getattr(ops, name)
        for values in itertools.product(NUMBERS, repeat=len(tried)):
            chosen = good | dict(zip(tried, values, strict=True))
            what = f"{number} {name} {json.dumps(dict(zip(tried, values, strict=True)))}"
            found[what] = outcome(raw, chosen | rest)
            checked = outcome(wrapped, chosen | ({"seed": 1, "offset": 2} if keyed else {}) | own)
            expected = "refused" if device == "meta" else found[what]  # shapes alone are the operators' business
            assert checked == expected, f"{what}: the wrapper {checked}, the operator {found[what]}"
    for what, name, arguments in wrong_tensors(device):
        keyed = name.startswith("encode") or name == "hadamard"
        own = {"hadamard": {"inverse": True}, "encode_rotated": {"rotation": 3}}.get(name, {})
        rest = ({"seed": 1, "offset": 2} if keyed else {}) | own
        found[f"{name} {what}"] = outcome(getattr(torch.ops.lqray, name), arguments | rest)
        with pytest.raises(ValueError, match=f"{name}: "):
            getattr(ops, name)(**arguments, **rest)
    return found


@functools.cache
def attempted(device: str, native: str) -> dict[str, str]:
    code = f"import json; from tests.ops.test_extremes import attempt; print(json.dumps(attempt({device!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LQRAY_NATIVE": native},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("device", "native"), [pytest.param("cpu", "1", marks=NATIVE), ("cpu", "0"), ("meta", "0")], ids=str
)
def test_extreme_arguments_are_refused(device, native):
    """The wrappers say no with a ValueError that names the operator wherever the operator does, and nothing crashes."""
    found = attempted(device, native)
    assert len(found) > 2000
    wrong = {what for what in found if "{" not in what}
    assert len(wrong) > 60
    assert {found[what] for what in wrong} == {"refused"}
    for what, answer in found.items():
        numbers = json.loads(what[what.index("{") :]) if "{" in what else {}
        if any(value < 0 for value in numbers.values()) or any(value > 2**31 for value in numbers.values()):
            assert answer == "refused", what
    assert len(set(found.values())) > 5  # of good arguments something comes back


@NATIVE
def test_the_backends_refuse_the_same():
    assert attempted("cpu", "1") == attempted("cpu", "0")


@pytest.mark.parametrize(
    ("n", "bits", "bucket_size"), [(-1, 3, 32), (2**62, 3, 32), (64, 0, 32), (64, 9, 32), (64, 3, 0), (64, 3, 2**62)]
)
def test_sizes_of_impossible_payloads_are_errors(n, bits, bucket_size):
    with pytest.raises(ValueError, match="allowed"):
        ops.norm_bytes(n, bucket_size) + ops.code_bytes(n, bits)


@pytest.mark.parametrize("size", [0, 23, 25])
def test_codes_of_another_length_are_not_unpacked(size):
    with pytest.raises(ValueError, match=rf"\({size},\); allowed: torch.uint8 of \(24,\)"):
        ops.unpack(torch.zeros(size, dtype=torch.uint8), 64, 3)


ODD = {
    "no dimension": lambda x: x.reshape(-1)[0],
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.reshape(1, -1).to_sparse_csr(),
    "complex": lambda x: x.to(torch.complex64),
    "nested": lambda x: torch.nested.nested_tensor([x]),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "a list": lambda x: x.tolist(),
}


def of_tensors():
    """(name, tensor, a call that takes it) of every argument that is one."""
    x, levels = torch.randn(64), torch.linspace(-1, 1, 8)
    payload, norms = ops.encode_fused(x, levels, 3, 32, "linf", 1, 2), ops.bucket_norms(x, 32, "linf")
    codes, rows = ops.encode(x, norms, levels, 3, 32, 1, 2), torch.stack([payload, payload])
    clipping, adapting = Quantizer.create("terngrad", bucket_size=32, clip=2.5), Quantizer.create("alq", bucket_size=32)
    like = Quantizer.create("qsgd_inf", bucket_size=32).encode(x, seed=1, offset=2)
    yield "bucket_norms", x, lambda t: ops.bucket_norms(t, 32, "l2")
    yield "bucket_statistics", x, lambda t: ops.bucket_statistics(t, 32, "l2")
    yield "encode x", x, lambda t: ops.encode(t, norms, levels, 3, 32, 1, 2)
    yield "encode norms", norms, lambda t: ops.encode(x, t, levels, 3, 32, 1, 2)
    yield "encode levels", levels, lambda t: ops.encode(x, norms, t, 3, 32, 1, 2)
    yield "encode_fused x", x, lambda t: ops.encode_fused(t, levels, 3, 32, "l2", 1, 2)
    yield "encode_fused levels", levels, lambda t: ops.encode_fused(x, t, 3, 32, "l2", 1, 2)
    yield "encode_rotated x", x, lambda t: ops.encode_rotated(t, levels, 3, 32, "l2", 1, 2, 3)
    yield "encode_rotated levels", levels, lambda t: ops.encode_rotated(x, t, 3, 32, "l2", 1, 2, 3)
    yield "decode payload", payload, lambda t: ops.decode(t, levels, 64, 3, 32)
    yield "decode levels", levels, lambda t: ops.decode(payload, t, 64, 3, 32)
    yield "decode_sum payloads", rows, lambda t: ops.decode_sum(t, levels, 64, 3, 32, 0.5)
    yield "decode_sum add", x, lambda t: ops.decode_sum(rows, levels, 64, 3, 32, 0.5, t)
    yield "hadamard", x, lambda t: ops.hadamard(t, 32, 1, 2)
    yield "unpack", codes, lambda t: ops.unpack(t, 64, 3)
    yield "Quantizer.encode", x, lambda t: clipping.encode(t, seed=1, offset=2)
    yield "Quantizer.observe", x, lambda t: adapting.observe(t)
    yield "Quantizer.bias", x, lambda t: clipping.bias(t)
    yield "Quantizer.decode_mean", rows, lambda t: Quantizer.create("qsgd_inf", bucket_size=32).decode_mean(t, like)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_hold_no_row_of_numbers_are_refused(odd):
    for name, tensor, call in of_tensors():
        call(tensor)
        try:
            wrong = ODD[odd](tensor)
        except RuntimeError:
            continue  # torch makes no such tensor of this dtype
        if name.startswith("Quantizer") and odd == "no dimension" and tensor.dim() == 1:
            continue  # a tensor of any shape may be encoded
        with pytest.raises(ValueError, match="allowed"):
            call(wrong)


@pytest.mark.parametrize("size", [0, -1, 2**31, 1.5])
def test_buckets_of_no_coordinates_are_refused(size):
    x, levels = torch.randn(64), torch.linspace(-1, 1, 8)
    payload = ops.encode_fused(x, levels, 3, 32, "linf", 1, 2)
    for call in (
        lambda: ops.bucket_norms(x, size, "l2"),
        lambda: ops.bucket_statistics(x, size, "l2"),
        lambda: ops.encode(x, torch.ones(2), levels, 3, size, 1, 2),
        lambda: ops.encode_fused(x, levels, 3, size, "l2", 1, 2),
        lambda: ops.encode_rotated(x, levels, 3, size, "l2", 1, 2, 3),
        lambda: ops.decode(payload, levels, 64, 3, size),
        lambda: ops.decode_sum(payload[None], levels, 64, 3, size, 1.0),
        lambda: ops.hadamard(x, size, 1, 2),
        lambda: ops.norm_bytes(64, size),
        lambda: LevelPayload(payload, 64, torch.float32, 0, 3, size).norms,
        lambda: Quantizer.create("qsgd", bucket_size=size),
    ):
        with pytest.raises(ValueError, match="allowed|bucket_size"):
            call()
