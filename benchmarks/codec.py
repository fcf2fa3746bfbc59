"""Speed of the operators beside what memory allows: python benchmarks/codec.py (CPU, two threads; a GPU where one is).

n = 25 million float32 coordinates, bucket 8192, 3 bits. Each ratio is the median over repeats of two timings taken in
turn. Bytes that must move, per coordinate: encode reads 4 and writes 3/8, decode the other way round; tensor.clone()
reads 4 and writes 4. With LQRAY_CPU_ISA=avx2 or portable, the figures of kernels held back so, in a file of their own.
`python benchmarks/codec.py slopes`: levels with slopes alone, which have files of their own, too; `allocated`: bits
allocated to blocks, with every `inner` that it has.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from record import median_ratio, median_seconds, record

from lqray import ops
from lqray.ops import reference
from lqray.quantization import create
from lqray.quantization.histogram import histogram
from lqray.quantization.levels import uniform_levels
from lqray.quantization.slope_solver import Sloped, fit_slopes, gaps_as_slopes

N = 25_000_000 // 8192 * 8192
BITS, BUCKET = 3, 8192
BYTES = N * (4 + BITS / 8) + 4 * (N // BUCKET)


def cpu() -> None:
    held_back = os.environ.get("LQRAY_CPU_ISA")
    torch.set_num_threads(2)
    x, levels = torch.randn(N), torch.linspace(-1, 1, 2**BITS)
    payload = ops.encode_fused(x, levels, BITS, BUCKET, "l2", 1, 2)
    four = torch.stack([payload] * 4)

    def encode() -> torch.Tensor:
        return ops.encode_fused(x, levels, BITS, BUCKET, "l2", 1, 2)

    def decode() -> torch.Tensor:
        return ops.decode(payload, levels, N, BITS, BUCKET)

    def decode_four() -> torch.Tensor:
        return ops.decode_sum(four, levels, N, BITS, BUCKET, 0.25)

    def clone() -> torch.Tensor:
        return x.clone()

    part = x[: N // 16]
    ratios = {
        "encode_fused_over_clone_speed": median_ratio(clone, encode),
        "decode_over_clone_speed": median_ratio(clone, decode),
        "decode_sum_of_4_over_decode_time": median_ratio(decode_four, decode),
        "encode_fused_over_reference_speed": median_ratio(
            lambda: reference.encode_fused(part, levels, BITS, BUCKET, "l2", 1, 2),
            lambda: ops.encode_fused(part, levels, BITS, BUCKET, "l2", 1, 2),
            repeats=5,
        ),
        "bucket_statistics_over_vector_norm_time": median_ratio(
            lambda: ops.bucket_statistics(x, BUCKET, "l2"), lambda: torch.linalg.vector_norm(x)
        ),
        "hadamard_over_clone_time": median_ratio(lambda: ops.hadamard(x, BUCKET, 1, 2), clone),
    }
    seconds = {"clone": median_seconds(clone), "encode_fused": median_seconds(encode), "decode": median_seconds(decode)}
    record(
        f"codec_cpu_{held_back}" if held_back else "codec_cpu",
        {
            "coordinates": N,
            "threads": 2,
            "instruction_set": ops.loaded.instruction_set,
            "ratios": ratios,
            "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
            "bytes_that_must_move": {"encode_fused": BYTES, "decode": BYTES, "clone": 8 * N},
            "gigabytes_per_second": {
                name: (8 * N if name == "clone" else BYTES) / value / 1e9 for name, value in seconds.items()
            },
            # At clone's own rate of bytes; what is above it is faster because it writes, and so allocates, less.
            "floor_milliseconds_at_the_rate_of_clone": 1e3 * seconds["clone"] * BYTES / (8 * N),
        },
        {
            "encode_fused 20 times the reference": ratios["encode_fused_over_reference_speed"] >= 20,
            "encode_fused 0.35 of clone": ratios["encode_fused_over_clone_speed"] >= 0.35,
            "decode 0.5 of clone": ratios["decode_over_clone_speed"] >= 0.5,
            "decode_sum of 4 at most 2.5 decodes": ratios["decode_sum_of_4_over_decode_time"] <= 2.5,
        },
    )


def processor_seconds(call: Callable[[], object], repeats: int = 9) -> float:
    """Median seconds of this process's threads for a call, whoever else keeps the machine busy."""
    spent = [time.process_time()]
    for _ in range(repeats):
        call()
        spent.append(time.process_time())
    return statistics.median(after - before for before, after in itertools.pairwise(spent))


def sloped_cpu() -> None:
    """Levels with slopes, whose decoder generates random numbers, correlated rounding, and how long a fit takes."""
    held_back = os.environ.get("LQRAY_CPU_ISA")
    torch.set_num_threads(2)
    x, levels, slopes = torch.randn(N), torch.linspace(-1, 1, 2**BITS), torch.full((2**BITS,), 2 / 7)
    shape, phases = (N, BITS, BUCKET), torch.arange(4, dtype=torch.int32)
    four = torch.stack([ops.slopes_encode(x, levels, slopes, BITS, BUCKET, 1, 2, 3)] * 4)

    def clone() -> torch.Tensor:
        return x.clone()

    def encode() -> torch.Tensor:
        return ops.slopes_encode(x, levels, slopes, BITS, BUCKET, 1, 2, 3)

    def correlated() -> torch.Tensor:
        return ops.correlated_encode(x, levels, BITS, BUCKET, "linf", 1, 2, 3, 0, 4)

    def decode() -> torch.Tensor:
        return ops.slopes_decode_sum(four[:1], phases[:1], levels, slopes, *shape, 1, 2, 1.0)

    def decode_four() -> torch.Tensor:
        return ops.slopes_decode_sum(four, phases, levels, slopes, *shape, 1, 2, 0.25)

    calls = {
        "clone": clone,
        "encode": encode,
        "correlated_encode": correlated,
        "decode": decode,
        "mean_of_4": decode_four,
    }
    ratios = {
        "encode_over_clone_speed": median_ratio(clone, encode),
        "correlated_encode_over_clone_speed": median_ratio(clone, correlated),
        "decode_over_clone_speed": median_ratio(clone, decode),
        "mean_of_4_over_decode_time": median_ratio(decode_four, decode),
    }
    seen = histogram(x[: 64 * BUCKET], BUCKET, "linf", "norm_squared")
    starts = {bits: Sloped(uniform_levels(bits), gaps_as_slopes(uniform_levels(bits)), 0.0) for bits in (3, 8)}
    fits = {
        bits: 1e3 * processor_seconds(lambda start=start: fit_slopes(seen.points, seen.weights, start))
        for bits, start in starts.items()
    }
    record(
        f"codec_slopes_{held_back}" if held_back else "codec_slopes",
        {
            "coordinates": N,
            "threads": 2,
            "instruction_set": ops.loaded.instruction_set,
            "ratios": ratios,
            "milliseconds": {name: 1e3 * median_seconds(call) for name, call in calls.items()},
            "fit_milliseconds_of_one_core": fits,
        },
        {
            "encode 0.5 of clone": ratios["encode_over_clone_speed"] >= 0.5,
            "decode 0.5 of clone": ratios["decode_over_clone_speed"] >= 0.5,
            "mean of 4 at most 2.5 decodes": ratios["mean_of_4_over_decode_time"] <= 2.5,
            "a fit of 3 bits in 20 ms": fits[3] <= 20,
            "a fit of 8 bits in 100 ms": fits[8] <= 100,
        },
    )


def allocated_cpu() -> None:
    """Payloads of `allocated`, whole: norms, widths and codes, at 3 bits in all."""
    held_back = os.environ.get("LQRAY_CPU_ISA")
    torch.set_num_threads(2)
    x, figures, targets = torch.randn(N), {}, {}
    for inner in ("eden", "rounding", "dither", "slopes"):
        compressor = create("allocated", bits=BITS, inner=inner, exponent=1)
        payload = compressor.encode(x, seed=1, offset=2)
        four = torch.stack([payload.buffer] * 4)
        calls = {
            "clone": x.clone,
            "encode": partial(compressor.encode, x, seed=1, offset=2),
            "decode": partial(compressor.decode, payload),
            "mean_of_4": partial(compressor.decode_mean, four, payload),
        }
        ratios = {
            "encode_over_clone_speed": median_ratio(calls["clone"], calls["encode"]),
            "decode_over_clone_speed": median_ratio(calls["clone"], calls["decode"]),
            "mean_of_4_over_decode_time": median_ratio(calls["mean_of_4"], calls["decode"]),
        }
        milliseconds = {name: 1e3 * median_seconds(call) for name, call in calls.items()}
        figures[inner] = {"ratios": ratios, "milliseconds": milliseconds}
        targets |= {
            f"{inner}: encode 0.5 of clone": ratios["encode_over_clone_speed"] >= 0.5,
            f"{inner}: decode 0.5 of clone": ratios["decode_over_clone_speed"] >= 0.5,
            f"{inner}: mean of 4 at most 2.5 decodes": ratios["mean_of_4_over_decode_time"] <= 2.5,
        }
    measured = {"coordinates": N, "threads": 2, "instruction_set": ops.loaded.instruction_set, **figures}
    record(f"codec_allocated_{held_back}" if held_back else "codec_allocated", measured, targets)


def gpu_seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Median seconds of a call on the device, by events, with its launches queued beforehand."""
    for _ in range(3):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in events:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in events) / 1e3


def original_path(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The research code's way, restated in torch: norms expanded to every coordinate, a linear search of the levels
    with a 64-bit random integer for each coordinate, values written at once, nothing packed."""
    rows = x.view(-1, BUCKET)
    norms = rows.norm(dim=1, keepdim=True).expand_as(rows).reshape(-1)
    r = x / (norms + 1e-7)
    random = torch.randint(0, 1 << 31, x.shape, device=x.device, dtype=torch.int64)
    u = (random % 1_000_001).to(torch.float32) / 1_000_000.0
    value = torch.empty_like(x)
    for low, high in itertools.pairwise(levels):
        up = u * (high - low) < r - low
        value = torch.where((r >= low) & (r <= high), torch.where(up, high, low), value)
    return value * norms


def gpu() -> None:
    x, levels = torch.randn(N, device="cuda"), torch.linspace(-1, 1, 2**BITS, device="cuda")
    payload = ops.encode_fused(x, levels, BITS, BUCKET, "l2", 1, 2)
    four, copied = torch.stack([payload] * 4), torch.empty_like(x)
    seconds = {
        "copy": gpu_seconds(lambda: copied.copy_(x)),
        "encode_fused": gpu_seconds(lambda: ops.encode_fused(x, levels, BITS, BUCKET, "l2", 1, 2)),
        "decode": gpu_seconds(lambda: ops.decode(payload, levels, N, BITS, BUCKET)),
        "decode_sum_of_4": gpu_seconds(lambda: ops.decode_sum(four, levels, N, BITS, BUCKET, 0.25)),
        "original_path": gpu_seconds(lambda: original_path(x, levels), repeats=5),
        "hadamard": gpu_seconds(lambda: ops.hadamard(x, BUCKET, 1, 2)),
        "encode_rotated": gpu_seconds(lambda: ops.encode_rotated(x, levels, BITS, BUCKET, "l2", 1, 2, 3)),
    }
    bandwidth = 8 * N / seconds["copy"]
    share = {name: BYTES / seconds[name] / bandwidth for name in ("encode_fused", "decode")}
    record(
        "codec_gpu",
        {
            "device": torch.cuda.get_device_name(),
            "coordinates": N,
            "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
            "copy_gigabytes_per_second": bandwidth / 1e9,
            "share_of_copy_bandwidth": share,
            "times_faster_than_the_original_path": seconds["original_path"] / seconds["encode_fused"],
        },
        {
            "encode_fused at 80% of copy bandwidth": share["encode_fused"] >= 0.8,
            "decode at 80% of copy bandwidth": share["decode"] >= 0.8,
            "12 times the original path": seconds["original_path"] / seconds["encode_fused"] >= 12,
        },
    )


if __name__ == "__main__":
    started = time.perf_counter()
    parts = {"codec": cpu, "slopes": sloped_cpu, "allocated": allocated_cpu}
    if unknown := set(sys.argv[1:]) - set(parts):
        sys.exit(f"{', '.join(sorted(unknown))}: unknown; allowed: {', '.join(parts)}, or nothing for all")
    for part in sys.argv[1:] or parts:
        parts[part]()
    if sys.argv[1:]:
        sys.exit()
    if torch.cuda.is_available() and ops.native.backend("encode_fused", "cuda") == "native":
        gpu()
    else:
        print("No GPU, or no CUDA kernels: the GPU's figures are left as they are.", file=sys.stderr)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
