"""The CUDA kernels' machine code: instructions a coordinate, beside what the memory of a GPU allows. Needs no GPU.

python benchmarks/sass.py [--before DIR]   (a minute; needs nvcc, and nvdisasm of CUDA's toolkit or of the package
nvidia-cuda-nvdisasm; DIR: another copy of csrc/, whose kernels' sizes are recorded beside)

A kernel's steady loop is its longest one. Of the ways through it, that one is counted which makes the most ballots and
the most accesses of 16 bytes, and of these the shortest: a whole tile of one bucket that lies on 16 bytes. Every
instruction counts that takes an issue slot, those of the uniform datapath too. Of encode_short_buckets this way leaves
out where buckets end, which their size decides: 17 instructions of a lane more for each two, of 32 coordinates, that is
4.3 a coordinate for buckets of 64, and 0.5 for those of 512.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import record

CSRC = Path(__file__).parent.parent / "csrc"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BITS = 3
# Kernels that are counted, and the coordinates of a lane that one turn of their loop works on.
STEADY = {
    f"encode_buckets<{BITS}, l2>": 32,
    f"encode_buckets<{BITS}, linf>": 32,
    f"encode_short_buckets<{BITS}, l2>": 32,
    f"encode_short_buckets<{BITS}, linf>": 32,
    f"encode_tiles<{BITS}>": 8,
    f"decode_tiles<{BITS}, plain>": 8,
}
# NVIDIA's figures of an H100 SXM: bytes/s of its memory; processors, schedulers of each, lanes of a warp, clock.
BANDWIDTH = 3.35e12
LANE_INSTRUCTIONS = 132 * 4 * 32 * 1.7e9
# float32 read or written, codes written or read; norms of 8,192 coordinates.
BYTES = 4 + BITS / 8 + 4 / 8192
FLOAT64 = re.compile(r"^D(ADD|MUL|FMA|SETP|MNMX)\b")
FLOW = re.compile(r"`\((?P<label>\.L_\w+)\)")


@dataclass(frozen=True)
class Instruction:
    """label: where a branch goes, if it is one."""

    name: str
    conditional: bool
    label: str | None


@dataclass
class Kernel:
    """Its instructions in order, and at which of them its labels stand."""

    instructions: list[Instruction]
    labels: dict[str, int]

    @property
    def code_bytes(self) -> int:
        return 16 * len(self.instructions)

    def steady(self) -> int:
        """Instructions of one turn of the longest loop."""
        loops = [
            (self.labels[one.label], at)
            for at, one in enumerate(self.instructions)
            if one.name.startswith("BRA") and one.label and self.labels[one.label] <= at
        ]
        head, back = max(loops, key=lambda loop: loop[1] - loop[0])
        # From the last instruction to the first: (ballots and wide accesses, less instructions) of the best way on.
        best: dict[int, tuple[int, int]] = {}
        for at in range(back, head - 1, -1):
            one = self.instructions[at]
            wide = one.name.startswith("VOTE") or one.name.endswith(".128")
            counts = one.name != "NOP"
            ways = [] if at == back else self._ways(at, back, best)
            if at == back or ways:
                on = max(ways, default=(0, 0))
                best[at] = (on[0] + wide, on[1] - counts)
        return -best[head][1]

    def _ways(self, at: int, back: int, best: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
        one = self.instructions[at]
        if re.match(r"(EXIT|RET|BRX|JMX)", one.name) and not one.conditional:
            return []
        targets = [at + 1] if one.conditional or not re.match(r"(BRA|CALL)\b", one.name) else []
        if one.name.startswith("BRA") and one.label and at < self.labels[one.label] <= back:
            targets.append(self.labels[one.label])
        return [best[target] for target in targets if target in best]


def tool(name: str) -> str:
    """Raises SystemExit where CUDA's tool is not to be found."""
    places = [Path(sys.prefix) / "lib", Path("/usr/local")]
    found = shutil.which(name) or next((str(one) for place in places for one in place.rglob(f"bin/{name}")), None)
    if found is None:
        raise SystemExit(f"sass: {name} is missing; it is part of CUDA's toolkit, and `pip install nvidia-cuda-{name}`")
    return found


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels(csrc: Path, architecture: str, folder: Path) -> dict[str, Kernel]:
    """By short names."""
    cubin = folder / f"{architecture}.cubin"
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch={architecture}", "-I", str(csrc), "-cubin"]
    run(tool("nvcc"), *flags, "-o", str(cubin), str(csrc / "quantize_cuda.cu"))
    return parsed(run(tool("nvdisasm"), "-c", str(cubin)))


def parsed(listing: str) -> dict[str, Kernel]:
    """The kernels of nvdisasm's listing."""
    found: dict[str, Kernel] = {}
    kernel = Kernel([], {})
    for line in listing.splitlines():
        if section := re.match(r"\.text\.(\S+):", line):
            kernel = found.setdefault(short_name(section.group(1)), Kernel([], {}))
        elif label := re.match(r"(\.L_\w+):", line):
            kernel.labels[label.group(1)] = len(kernel.instructions)
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)", line):
            condition, name, operands = code.groups()
            target = FLOW.search(operands)
            # A branch may have its condition as an operand.
            conditional = bool(condition) or bool(re.match(r"\s*!?U?P\d|\.DIV|\s+UR", operands)) or ".DIV" in name
            kernel.instructions.append(Instruction(name, conditional, target.group("label") if target else None))
    return found


def short_name(mangled: str) -> str:
    """Of a symbol, as encode_buckets<3, l2>; readers of 16 bits are named."""
    text = re.sub(r"\(anonymous namespace\)::|lqray::cuda::|lqray::", "", run("c++filt", mangled))
    name = re.search(r"(\w+)(<.*?>)?\(", text)
    assert name, text
    arguments = name.group(2) or ""
    for written, short in (
        (r"\(Norm\)0", "l2"),
        (r"\(Norm\)1", "linf"),
        (r"\(int\)|, Float32|Float32", ""),
        (r"\(bool\)1|true", "plain"),
        (r"\(bool\)0|false", "sum"),
        (r"^<>$", ""),
    ):
        arguments = re.sub(written, short, arguments)
    return name.group(1) + arguments


def sizes(code: dict[str, Kernel]) -> dict[str, Any]:
    """What is asked of all kernels."""
    with_float64 = {
        name.split("<")[0] for name, kernel in code.items() for one in kernel.instructions if FLOAT64.match(one.name)
    }
    return {
        "kernels": len(code),
        "largest_kernel_bytes": max(kernel.code_bytes for kernel in code.values()),
        "largest_kernel": max(code, key=lambda name: code[name].code_bytes),
        "with_float64": sorted(with_float64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    chosen = parser.parse_args()
    allowed = BYTES / BANDWIDTH * LANE_INSTRUCTIONS
    figures: dict[str, Any] = {
        "bytes_a_coordinate": BYTES,
        "h100_coordinates_per_second_of_memory": BANDWIDTH / BYTES,
        "h100_lane_instructions_a_coordinate": allowed,
        "nvcc": run(tool("nvcc"), "--version").strip().splitlines()[-1],
    }
    with tempfile.TemporaryDirectory() as name:
        for architecture in ARCHITECTURES:
            code = kernels(CSRC, architecture, Path(name))
            steady = {kernel: code[kernel].steady() / lane for kernel, lane in STEADY.items()}
            figures[architecture] = {"instructions_a_coordinate": steady, **sizes(code)}
        if chosen.before:
            figures["before_sm_90"] = sizes(kernels(chosen.before, "sm_90", Path(name)))
    hopper = figures["sm_90"]
    steady = hopper["instructions_a_coordinate"]
    record(
        "sass",
        figures,
        {
            "encode_fused at 3 bits: at most 36 instructions a coordinate (sm_90)": all(
                count <= 36 for kernel, count in steady.items() if kernel.startswith("encode_buckets")
            ),
            "decode at 3 bits: at most 30 (sm_90)": steady[f"decode_tiles<{BITS}, plain>"] <= 30,
            "no FP64 but in bucket_statistics": hopper["with_float64"] == ["statistics_of_buckets"],
            "at most 32 KiB of code a kernel (all)": all(
                figures[architecture]["largest_kernel_bytes"] <= 32 * 1024 for architecture in ARCHITECTURES
            ),
        },
    )


if __name__ == "__main__":
    main()
