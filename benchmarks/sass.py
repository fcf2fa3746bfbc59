"""The CUDA kernels' machine code: instructions a coordinate, beside what the memory of a GPU allows. Needs no GPU.

python benchmarks/sass.py [--before DIR]   (a minute; needs nvcc, and nvdisasm of CUDA's toolkit or of the package
nvidia-cuda-nvdisasm; DIR: another copy of csrc/, whose kernels' sizes are recorded beside)

A kernel's steady loop is its longest one. Of the ways through it, that one is counted which makes the most ballots and
the most accesses of 16 bytes, and of these the shortest: a whole tile of one bucket that lies on 16 bytes. Every
instruction counts that takes an issue slot, those of the uniform datapath too. Of encode_short_buckets this way leaves
out where buckets end, which their size decides: 17 instructions of a lane more for each two, of 32 coordinates, that is
4.3 a coordinate for buckets of 64, and 0.5 for those of 512.

Kernels that rotate have loops within, which count as often as they go round, and their way has the most additions, so
that no butterfly is left out, but the fewest shuffles, since squares that are rescaled take more: buckets of 8,192, for
encode_rotated<short> those of 128 with the butterflies of 512. Not counted: the Philox calls of signs, which two warps
of eight make, 0.7 a coordinate, and in hadamard_spans the signs, 2 a coordinate, before the transform or after it.
"""

from __future__ import annotations

import argparse
import math
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
MOST, FEWEST = 1, -1
TILES = (MOST, r"VOTE|.*\.128$")


@dataclass(frozen=True)
class Counted:
    """lane: coordinates of a lane that one turn of the loop works on. order: the way through it has the most, or the
    fewest, of these names; of such ways, of the next. within: how often loops within go round, in their order."""

    lane: int
    order: tuple[tuple[int, str], ...] = (TILES,)
    within: tuple[int, ...] = ()


ROTATED = (TILES, (FEWEST, "SHFL"), (MOST, "FADD"))
STEADY = {
    f"encode_buckets<{BITS}, l2>": Counted(32),
    f"encode_buckets<{BITS}, linf>": Counted(32),
    f"encode_short_buckets<{BITS}, l2>": Counted(32),
    f"encode_short_buckets<{BITS}, linf>": Counted(32),
    f"encode_tiles<{BITS}>": Counted(8),
    f"decode_tiles<{BITS}, plain>": Counted(8),
    "hadamard_spans": Counted(32, ((MOST, "FADD"),), (5, 4)),
    f"encode_rotated<{BITS}, l2, long>": Counted(32, ROTATED, (5, 4, 4)),
    f"encode_rotated<{BITS}, linf, long>": Counted(32, ROTATED, (5, 4, 4)),
    f"encode_rotated<{BITS}, l2, short>": Counted(32, ROTATED, (5, 4, 4, 4)),
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


Loop = tuple[int, int]  # its first and its last instruction
Way = tuple[int, ...]  # of each name that counts how many, less where the fewest are wanted; less instructions


@dataclass
class Kernel:
    """Its instructions in order, and at which of them its labels stand."""

    instructions: list[Instruction]
    labels: dict[str, int]

    @property
    def code_bytes(self) -> int:
        return 16 * len(self.instructions)

    def steady(self, counted: Counted) -> int:
        """Instructions of one turn of the longest loop."""
        loops = [
            (self.labels[one.label], at)
            for at, one in enumerate(self.instructions)
            if one.name.startswith("BRA") and one.label and self.labels[one.label] <= at
        ]
        longest = max(loops, key=lambda loop: loop[1] - loop[0])
        way = set(self._way(longest, counted.order))
        within = sorted({loop for loop in loops if longest[0] < loop[0] and loop[1] <= longest[1] and loop[0] in way})
        if len(within) > len(counted.within) > 0:
            raise SystemExit(f"sass: a loop has {len(within)} within; expected: {len(counted.within)}")
        turns = dict(zip(within, counted.within, strict=False))
        return sum(
            math.prod(times for (head, back), times in turns.items() if head <= at <= back)
            for at in way | {back for _, back in turns}
            if self.instructions[at].name != "NOP"
        )

    def _way(self, loop: Loop, order: tuple[tuple[int, str], ...]) -> list[int]:
        """The instructions of the best way through a loop."""
        head, back = loop
        # From the last instruction to the first: what is best from there, and where it goes on.
        best: dict[int, tuple[Way, int]] = {}
        for at in range(back, head - 1, -1):
            name = self.instructions[at].name
            ways = [] if at == back else self._ways(at, back, best)
            if at == back or ways:
                before, on = max(ways, default=((0,) * (len(order) + 1), -1))
                own = (*(sign * bool(re.match(names, name)) for sign, names in order), -(name != "NOP"))
                best[at] = (tuple(map(sum, zip(before, own, strict=True))), on)
        way = [head]
        while way[-1] != back:
            way.append(best[way[-1]][1])
        return way

    def _ways(self, at: int, back: int, best: dict[int, tuple[Way, int]]) -> list[tuple[Way, int]]:
        one = self.instructions[at]
        if re.match(r"(EXIT|RET|BRX|JMX)", one.name) and not one.conditional:
            return []
        targets = [at + 1] if one.conditional or not re.match(r"(BRA|CALL)\b", one.name) else []
        # A label may be "called" to leave a loop; routines have other names.
        if re.match(r"(BRA|CALL)\b", one.name) and one.label and at < self.labels[one.label] <= back:
            targets.append(self.labels[one.label])
        return [(best[target][0], target) for target in targets if target in best]


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
    if name.group(1) == "encode_rotated":
        arguments = re.sub(r"\(bool\)1|true", "long", re.sub(r"\(bool\)0|false", "short", arguments))
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
            steady = {name: code[name].steady(counted) / counted.lane for name, counted in STEADY.items()}
            figures[architecture] = {"instructions_a_coordinate": steady, **sizes(code)}
        if chosen.before:
            figures["before_sm_90"] = sizes(kernels(chosen.before, "sm_90", Path(name)))
    hopper = figures["sm_90"]
    steady = hopper["instructions_a_coordinate"]
    record(
        "sass",
        figures,
        {
            "encode_fused at 3 bits: at most 36 instructions a coordinate (all)": all(
                count <= 36
                for architecture in ARCHITECTURES
                for kernel, count in figures[architecture]["instructions_a_coordinate"].items()
                if kernel.startswith("encode_buckets")
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
