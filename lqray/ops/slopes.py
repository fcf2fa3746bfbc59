"""Operators whose noise all workers know: levels with slopes, and correlated rounding. Schemas, references, wrappers.

Slopes: level j has a slope s_j, and a decoder that knows the uniform number u that a coordinate was rounded with adds
s_j (u - 1/2) to the level. One stream, of key `seed` and `offset`, serves all workers; each adds a phase of its own to
its 32-bit words, modulo 2**32, so that u_w = frac(u + phase_w / 2**32) is as uniform as u. Slopes of 0 are stochastic
rounding; uniform levels whose slopes are the gap are subtractive dither.

Correlated rounding (Suresh et al., ICML 2022): of W workers, worker w takes its number from stratum (k + w) mod W of W
equal ones, k drawn alike by all: what is sent is the same, and decodes as ever. docs/wire-format.md pins both.

`slopes` is float32, of as many elements as `levels`: not negative, and of neighbours never differing by more than two
gaps, so that what rounds up does so with the more certainty the larger it is. Norms are linf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lqray.ops import reference
from lqray.ops.checks import (
    check_dense,
    check_input,
    check_levels,
    check_memory,
    check_norm,
    check_norms,
    check_payload,
    check_phase,
    check_sum,
    code_bytes,
    norm_bytes,
    signed,
)

MOST_WORKERS = 2**16
"""That round together."""
_MASK = 0xFFFFFFFF
_HALF = 2**23

_library = torch.library.Library("lqray", "FRAGMENT")
_library.define(
    "slopes_encode(Tensor x, Tensor levels, Tensor slopes, int bits, int bucket_size, int seed, int offset, int phase)"
    " -> Tensor"
)
_library.define(
    "slopes_decode_sum(Tensor payloads, Tensor phases, Tensor levels, Tensor slopes, int n, int bits, int bucket_size, "
    "int seed, int offset, float scale) -> Tensor"
)
_library.define(
    "correlated_encode(Tensor x, Tensor levels, int bits, int bucket_size, str norm, int seed, int offset, "
    "int shared_seed, int worker, int workers, Tensor? norms=None) -> Tensor"
)


def slopes_encode(
    x: Tensor, levels: Tensor, slopes: Tensor, bits: int, bucket_size: int, seed: int, offset: int, phase: int
) -> Tensor:
    """Norms and codes of x for levels with slopes: up when u (g + c (1 - u)) < r - l_j, where g = l_j+1 - l_j and
    c = (s_j - s_j+1) / 2.

    x: (n,) float32, float16 or bfloat16. seed, offset: of the stream that all workers share. phase: unsigned 32-bit.
    Returns (norm_bytes(n, bucket_size) + code_bytes(n, bits),) uint8. Raises ValueError for shapes, dtypes or numbers
    outside these.
    """
    check_memory("slopes_encode", x=x, levels=levels, slopes=slopes)
    check_input("slopes_encode", x, bucket_size)
    _check_slopes("slopes_encode", levels, slopes, bits, x)
    check_phase("slopes_encode", phase)
    numbers = signed(seed), signed(offset), phase
    return torch.ops.lqray.slopes_encode(x, levels, slopes, bits, bucket_size, *numbers)  # type: ignore[no-any-return]


def slopes_decode_sum(
    payloads: Tensor,
    phases: Tensor,
    levels: Tensor,
    slopes: Tensor,
    n: int,
    bits: int,
    bucket_size: int,
    seed: int,
    offset: int,
    scale: float,
) -> Tensor:
    """Sum of norm * (level + slope (u - 1/2)) over W payloads, added up in float32 in their order, times `scale`.

    payloads: (W, norm_bytes + code_bytes) uint8, W >= 1. phases: (W,) int32, the bits of each worker's phase. seed,
    offset: as they were encoded with; the stream is generated once. Returns (n,) float32. Raises ValueError as
    `lqray.ops.decode_sum`.
    """
    check_memory("slopes_decode_sum", payload=payloads, phases=phases, levels=levels, slopes=slopes)
    _check_sloped_sum(payloads, phases, levels, slopes, n, bits, bucket_size, scale)
    numbers = signed(seed), signed(offset), scale
    return torch.ops.lqray.slopes_decode_sum(  # type: ignore[no-any-return]
        payloads, phases, levels, slopes, n, bits, bucket_size, *numbers
    )


def correlated_encode(
    x: Tensor,
    levels: Tensor,
    bits: int,
    bucket_size: int,
    norm: str,
    seed: int,
    offset: int,
    shared_seed: int,
    worker: int,
    workers: int,
    norms: Tensor | None = None,
) -> Tensor:
    """As `lqray.ops.encode_fused`, rounded with u = ((k + worker) mod workers + v) / workers: k below `workers` from
    the stream of `shared_seed`, v in [0, 1) from that of `seed`.

    worker: 0 to workers - 1. workers: 2 to 2**16. norms: float32 (ceil(n / bucket_size),), in place of the buckets'
    own. Else arguments, result and errors as of `encode_fused`.
    """
    check_memory("correlated_encode", x=x, levels=levels, norms=norms)
    check_input("correlated_encode", x, bucket_size)
    check_norm("correlated_encode", norm)
    check_levels("correlated_encode", levels, bits, x)
    _check_workers("correlated_encode", worker, workers)
    if norms is not None:
        check_norms("correlated_encode", norms, x, bucket_size)
    numbers = signed(seed), signed(offset), signed(shared_seed), worker, workers
    return torch.ops.lqray.correlated_encode(  # type: ignore[no-any-return]
        x, levels, bits, bucket_size, norm, *numbers, norms
    )


def _slopes_encode(
    x: Tensor, levels: Tensor, slopes: Tensor, bits: int, bucket_size: int, seed: int, offset: int, phase: int
) -> Tensor:
    check_input("slopes_encode", x, bucket_size)
    _check_slopes("slopes_encode", levels, slopes, bits, x)
    check_phase("slopes_encode", phase)
    words = (reference.words(x.numel(), seed, offset, x.device) + phase) & _MASK
    norms = reference.bucket_norms(x, bucket_size, "linf")
    return torch.cat([norms.view(torch.uint8), _codes(x, norms, levels, slopes, bits, bucket_size, words)])


def _codes(
    x: Tensor, norms: Tensor, levels: Tensor, slopes: Tensor, bits: int, bucket_size: int, words: Tensor
) -> Tensor:
    """words: int64 (n,), holding uint32."""
    if not x.numel():
        return x.new_empty(0, dtype=torch.uint8)
    r = reference.normalized(x, norms, bucket_size)
    low = (r[:, None] >= levels[1:-1]).sum(dim=1)
    below, above = levels[low], levels[low + 1]
    curve = (slopes[low] - slopes[low + 1]) * 0.5
    u = reference.uniform(words)
    up = u * ((above - below) + curve * (1.0 - u)) < r - below
    return reference.pack(low + up, bits)


def _slopes_decode_sum(
    payloads: Tensor,
    phases: Tensor,
    levels: Tensor,
    slopes: Tensor,
    n: int,
    bits: int,
    bucket_size: int,
    seed: int,
    offset: int,
    scale: float,
) -> Tensor:
    _check_sloped_sum(payloads, phases, levels, slopes, n, bits, bucket_size, scale)
    total = payloads.new_zeros(n, dtype=torch.float32)
    if not n:
        return total
    split, last = norm_bytes(n, bucket_size), levels.numel() - 1
    words, tilted = reference.words(n, seed, offset, payloads.device), slopes * 2.0**-24
    for payload, phase in zip(payloads, phases.to(torch.int64), strict=True):
        norms = payload[:split].clone(memory_format=torch.contiguous_format).view(torch.float32)
        codes = reference.unpack(payload[split:], n, bits).to(torch.int64).clamp(max=last)
        from_half = ((((words + phase) & _MASK) >> 8) - _HALF).to(torch.float32)
        values = levels[codes] + tilted[codes] * from_half
        total += (norms[:, None] * reference.rows(values, bucket_size)).reshape(-1)[:n]
    return total * scale


def _correlated_encode(
    x: Tensor,
    levels: Tensor,
    bits: int,
    bucket_size: int,
    norm: str,
    seed: int,
    offset: int,
    shared_seed: int,
    worker: int,
    workers: int,
    norms: Tensor | None = None,
) -> Tensor:
    if norms is None:
        norms = reference.bucket_norms(x, bucket_size, norm)
    check_norms("correlated_encode", norms, x, bucket_size)
    check_levels("correlated_encode", levels, bits, x)
    _check_workers("correlated_encode", worker, workers)
    words = stratified_words(x.numel(), seed, offset, shared_seed, worker, workers, x.device)
    codes = _codes(x, norms, levels, torch.zeros_like(levels), bits, bucket_size, words)
    return torch.cat([norms.view(torch.uint8), codes])


def stratified_words(
    n: int, seed: int, offset: int, shared_seed: int, worker: int, workers: int, device: torch.device
) -> Tensor:
    """The words (n,) that correlated rounding takes its numbers from, int64 holding uint32."""
    shared, own = (reference.words(n, key, offset, device) for key in (shared_seed, seed))
    width = 2**32 // workers
    return (((shared * workers) >> 32) + worker) % workers * width + ((own * width) >> 32)


REFERENCES = {
    "slopes_encode": _slopes_encode,
    "slopes_decode_sum": _slopes_decode_sum,
    "correlated_encode": _correlated_encode,
}
"""By operator."""
for _name, _function in REFERENCES.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")


def _check_slopes(op: str, levels: Tensor, slopes: Tensor, bits: int, beside: Tensor) -> None:
    """slopes: of levels on the device of `beside`. Their values are looked at on the CPU only, as levels are."""
    check_levels(op, levels, bits, beside)
    check_dense(op, "slopes", slopes)
    if slopes.dtype != torch.float32 or slopes.shape != levels.shape or slopes.device != levels.device:
        raise ValueError(
            f"{op}: slopes is {slopes.dtype} of shape {tuple(slopes.shape)} on {slopes.device}; allowed: torch.float32 "
            f"of shape {tuple(levels.shape)} on {levels.device}, one for each level"
        )
    if slopes.device.type == "cpu" and type(slopes) is Tensor and not torch.compiler.is_compiling():
        gaps, curves = levels[1:] - levels[:-1], (slopes[:-1] - slopes[1:]) * 0.5
        if not (bool((slopes >= 0).all() & slopes.isfinite().all()) and bool((curves.abs() <= gaps).all())):
            raise ValueError(
                f"{op}: slopes is {slopes.tolist()} of levels {levels.tolist()}; allowed: numbers of at least 0, of "
                "which neighbours differ by no more than twice the gap between their levels"
            )


def _check_sloped_sum(
    payloads: Tensor,
    phases: Tensor,
    levels: Tensor,
    slopes: Tensor,
    n: int,
    bits: int,
    bucket_size: int,
    scale: float,
) -> None:
    op = "slopes_decode_sum"
    check_payload(op, payloads, n, bits, bucket_size, 2)
    _check_slopes(op, levels, slopes, bits, payloads)
    check_sum(op, scale, None, payloads, n)
    check_dense(op, "phases", phases)
    if phases.dtype != torch.int32 or phases.shape != payloads.shape[:1] or phases.device != payloads.device:
        raise ValueError(
            f"{op}: phases is {phases.dtype} of shape {tuple(phases.shape)} on {phases.device}; allowed: torch.int32 "
            f"of shape ({payloads.shape[0]},) on {payloads.device}, one for each payload"
        )


def _check_workers(op: str, worker: int, workers: int) -> None:
    if not (2 <= workers <= MOST_WORKERS and 0 <= worker < workers):
        raise ValueError(f"{op}: worker {worker} of {workers}; allowed: 2 to {MOST_WORKERS} workers, counted from 0")


@torch.library.register_fake("lqray::slopes_encode", lib=_library)
def _(
    x: Tensor, levels: Tensor, slopes: Tensor, bits: int, bucket_size: int, seed: int, offset: int, phase: int
) -> Tensor:
    check_input("slopes_encode", x, bucket_size)
    _check_slopes("slopes_encode", levels, slopes, bits, x)
    check_phase("slopes_encode", phase)
    return x.new_empty(norm_bytes(x.numel(), bucket_size) + code_bytes(x.numel(), bits), dtype=torch.uint8)


@torch.library.register_fake("lqray::slopes_decode_sum", lib=_library)
def _(
    payloads: Tensor,
    phases: Tensor,
    levels: Tensor,
    slopes: Tensor,
    n: int,
    bits: int,
    bucket_size: int,
    seed: int,
    offset: int,
    scale: float,
) -> Tensor:
    _check_sloped_sum(payloads, phases, levels, slopes, n, bits, bucket_size, scale)
    return payloads.new_empty(n, dtype=torch.float32)


@torch.library.register_fake("lqray::correlated_encode", lib=_library)
def _(
    x: Tensor,
    levels: Tensor,
    bits: int,
    bucket_size: int,
    norm: str,
    seed: int,
    offset: int,
    shared_seed: int,
    worker: int,
    workers: int,
    norms: Tensor | None = None,
) -> Tensor:
    check_input("correlated_encode", x, bucket_size)
    if norms is not None:
        check_norms("correlated_encode", norms, x, bucket_size)
    check_norm("correlated_encode", norm)
    check_levels("correlated_encode", levels, bits, x)
    _check_workers("correlated_encode", worker, workers)
    return x.new_empty(norm_bytes(x.numel(), bucket_size) + code_bytes(x.numel(), bits), dtype=torch.uint8)
