"""Speed of entropy coding on one core: python benchmarks/rans.py.

25 million codes: those of qsgd_inf at 3 bits of normal coordinates (bucket 8192), and rounded normal ones of 1 to 8
bits. Seconds are medians, of the wall clock and of the thread's processor time: on a machine with other work the one is
what a user waits, the other what the code takes. Beside them, in turn, clone() of as many float32, and the reference in
numpy.
With LQRAY_CPU_ISA=avx2 or portable, the figures of kernels held back so, in a file of their own.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from record import record

from lqray import ops
from lqray.ops import rans_reference, reference
from lqray.quantization import Quantizer, rans

N = 25_000_000
PART = 1_000_000
GROUP = 64


def seconds_of(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Median wall and processor seconds of each call, taken in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            wall, own = time.perf_counter(), time.thread_time()
            call()
            found[name].append((time.perf_counter() - wall, time.thread_time() - own))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in taken[1:]),
            "processor": statistics.median(own for _, own in taken[1:]),
        }
        for name, taken in found.items()
    }


def normal_codes(bits: int, n: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(bits)
    scaled = torch.randn(n, generator=draw).mul_(2**bits / 5).add_((2**bits - 1) / 2)
    return scaled.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def per_second(seconds: dict[str, float], n: int) -> dict[str, float]:
    """Millions of codes a second."""
    return {clock: n / value / 1e6 for clock, value in seconds.items()}


def coded(codes: torch.Tensor, bits: int, repeats: int) -> dict[str, object]:
    """Both directions beside clone()."""
    x = torch.zeros(codes.numel())
    stream = ops.rans_encode(codes, bits)
    counts = torch.bincount(codes).double()
    share = counts[counts > 0] / counts.sum()
    seconds = seconds_of(
        {
            "encode": lambda: ops.rans_encode(codes, bits),
            "decode": lambda: ops.rans_decode(stream, codes.numel(), bits),
            "clone": lambda: x.clone(),
        },
        repeats,
    )
    speed = {name: seconds["clone"]["processor"] / seconds[name]["processor"] for name in ("encode", "decode")}
    return {
        "bits_per_code": 8 * stream.numel() / codes.numel(),
        "entropy": float(-(share * share.log2()).sum()),
        "million_codes_per_second": {name: per_second(each, codes.numel()) for name, each in seconds.items()},
        "times_the_speed_of_clone_in_processor_time": speed,
    }


def of_classes(codes: torch.Tensor) -> dict[str, object]:
    """Four classes of groups of 64."""
    classes = torch.arange(-(-codes.numel() // GROUP)) % 4
    stream = rans.encode(codes, 3, classes, GROUP)
    seconds = seconds_of(
        {
            "encode": lambda: rans.encode(codes, 3, classes, GROUP),
            "decode": lambda: rans.decode(stream, codes.numel(), 3, classes, GROUP),
        },
        9,
    )
    return {name: per_second(each, codes.numel()) for name, each in seconds.items()}


def main() -> None:
    held_back = os.environ.get("LQRAY_CPU_ISA")
    torch.set_num_threads(1)
    quantizer = Quantizer.create("qsgd_inf", bits=3, bucket_size=8192)
    payload = quantizer.encode(torch.randn(N, generator=torch.Generator().manual_seed(0)), seed=1, offset=0)
    planes, codes = payload.buffer[payload.norm_bytes : payload.head_bytes], payload.codes
    of_gradients = coded(codes, 3, 15)
    some = codes[:PART]
    reference_seconds = seconds_of(
        {
            "encode": lambda: rans_reference.rans_encode(some, 3),
            "decode": lambda: rans_reference.rans_decode(ops.rans_encode(some, 3), PART, 3),
            "unpack": lambda: reference.unpack(planes[: ops.code_bytes(PART, 3)], PART, 3),
        },
        3,
    )
    exchange_seconds = seconds_of(
        {
            "planes to stream": lambda: ops.rans_encode(ops.unpack(planes, N, 3), 3),
            "unpack": lambda: ops.unpack(planes, N, 3),
            "pack": lambda: ops.pack(codes, 3),
        },
        9,
    )
    rates = of_gradients["million_codes_per_second"]
    assert isinstance(rates, dict)
    figures = {
        "codes": N,
        "threads": 1,
        "instruction_set": ops.loaded.instruction_set,
        "load_of_the_machine": os.getloadavg()[0],
        "of qsgd_inf at 3 bits": of_gradients,
        "million_codes_per_second_around_the_coder": {
            name: per_second(each, N) for name, each in exchange_seconds.items()
        },
        "million_codes_per_second_in_four_classes": of_classes(codes),
        "million_codes_per_second_of_the_reference": {
            name: per_second(each, PART) for name, each in reference_seconds.items()
        },
        "normal codes of bits": {str(bits): coded(normal_codes(bits, N), bits, 5) for bits in range(1, 9)},
    }
    record(
        f"rans_{held_back}" if held_back else "rans",
        figures,
        {}
        if held_back
        else {
            "encode 400 million codes a second on one core": rates["encode"]["wall"] >= 400,
            "decode 500 million codes a second on one core": rates["decode"]["wall"] >= 500,
        },
    )


if __name__ == "__main__":
    main()
