"""Builds the emulated library of a folder of kernels, in several variants."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lqray.kernels.build import CUDA_BINDINGS, CUDA_SOURCES
from tests.ops.emulation.translate import NotUnderstoodError, translate

MACHINE = Path(__file__).parent / "machine"
TORCH = Path(torch.__file__).parent
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
FLAGS += ["-Wno-unknown-pragmas", "-Wno-sign-compare", "-Wno-unused-function", "-Wno-maybe-uninitialized"]
# What the kernels, and only they, are compiled with besides.
VARIANTS = {
    "plain": [],
    "ucontext": [],
    "races": ["-fsanitize=thread"],
    "bounds": [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ],
}
# How the machine's own sources are compiled, by the ending of their object files: fibers have another size in each.
FIBERS = {"": [], "_ucontext": ["-DLQRAY_EMULATED_UCONTEXT"]}
MACHINE_SOURCES = ("scheduler", "accesses")


class BuildError(Exception):
    """What the compiler, or the translation, said."""


def compiler() -> str | None:
    """As in lqray/kernels/build.py."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def sanitizer_libraries() -> list[Path]:
    """The runtimes of AddressSanitizer and UBSan, which have to be loaded before Python's own; empty where they are
    not installed."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        command = [compiler() or "g++", f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        if not path.is_absolute() or not path.exists():
            return []
        found.append(path.resolve())
    return found


def kernel_files(csrc: Path) -> list[Path]:
    """The sources of the kernels: quantize_cuda.cu, what is written for a GPU and included, and the others."""
    return [csrc / CUDA_SOURCES[0], *sorted(csrc.glob("*.cuh")), *(csrc / source for source in CUDA_SOURCES[1:])]


FILES_APART = "\f\n"


def kernel_text(csrc: Path) -> str:
    """All of these as one text."""
    return FILES_APART.join(file.read_text() for file in kernel_files(csrc))


def write_kernels(csrc: Path, text: str) -> None:
    """The reverse."""
    for file, part in zip(kernel_files(csrc), text.split(FILES_APART), strict=True):
        file.write_text(part)


def machine_parts(csrc: Path, folder: Path) -> list[Callable[[], None]]:
    """Calls, each of which compiles a part of what the libraries of `folder` share: the machine, and the operators of
    torch.ops.lqray for tensors of the CPU, whose memory is the emulated device's. They raise BuildError."""
    machine = [
        (MACHINE / f"{source}.cpp", f"{source}{ending}", flags)
        for ending, flags in FIBERS.items()
        for source in MACHINE_SOURCES
    ]
    machine += [(_binding(csrc / name, folder), Path(name).stem, []) for name in CUDA_BINDINGS]
    return [partial(_compile, source, folder / f"{name}.o", csrc, "-O2", *flags) for source, name, flags in machine]


def _binding(source: Path, folder: Path) -> Path:
    """A binding whose operators are for tensors of the CPU."""
    key = "STABLE_TORCH_LIBRARY_IMPL(lqray, CUDA, m)"
    text = source.read_text()
    if text.count(key) != 1:
        raise BuildError(f"{source.name}: {key} is not there once")
    place = folder / source.name
    place.write_text(f'#line 1 "{source}"\n{text.replace(key, key.replace("lqray, CUDA", "lqray, CPU"))}')
    return place


def build(variant: str, csrc: Path, folder: Path, name: str = "emulated") -> Path:
    """The library of a variant; its other parts are in `folder`. Raises BuildError."""
    return link(variant, compile_kernels(variant, csrc, folder, name), folder, name)


def compile_kernels(variant: str, csrc: Path, folder: Path, name: str = "emulated") -> list[Path]:
    """The object files of a variant's kernels; where another call left one of the same text in `folder`, that one.
    Raises BuildError."""
    translated = folder / f"{name}_{variant}"
    translated.mkdir()
    try:
        for source in kernel_files(csrc):
            place = translated / (f"{source.stem}.cpp" if source.suffix == ".cu" else source.name)
            place.write_text(translate(source.read_text(), str(source)))
    except NotUnderstoodError as error:
        raise BuildError(str(error)) from error
    included = "".join(source.read_text() for source in sorted(csrc.glob("*.cuh")))
    objects = []
    for source in CUDA_SOURCES:
        content = hashlib.sha256((included + (csrc / source).read_text()).encode()).hexdigest()[:16]
        objects.append(folder / f"{Path(source).stem}_{variant}_{content}.o")
        if not objects[-1].exists():
            _compile((translated / source).with_suffix(".cpp"), objects[-1], csrc, *VARIANTS[variant])
    return objects


def link(variant: str, kernels: list[Path], folder: Path, name: str = "emulated") -> Path:
    """The library of kernels and of what the calls of `machine_parts` left in `folder`. Raises BuildError."""
    ending = "_ucontext" if variant == "ucontext" else ""
    machine = [*(Path(name).stem for name in CUDA_BINDINGS), *(f"{source}{ending}" for source in MACHINE_SOURCES)]
    library = folder / f"{name}_{variant}.so"
    sanitizers = [flag for flag in VARIANTS[variant] if flag.startswith("-fsanitize=address")]
    libraries = ["-L", TORCH / "lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    objects = [*kernels, *(folder / f"{name}.o" for name in machine)]
    _run([compiler() or "g++", "-shared", *sanitizers, *objects, "-o", library, *libraries])
    return library


def _compile(source: Path, output: Path, csrc: Path, *flags: str) -> None:
    abi = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    where = ["-I", MACHINE, "-I", csrc, "-isystem", TORCH / "include"]
    with tempfile.TemporaryDirectory(prefix="compiled-", dir=output.parent) as scratch:
        compiled = Path(scratch) / output.name  # others may compile the same
        _run([compiler() or "g++", *FLAGS, *flags, abi, *where, "-c", source, "-o", compiled])
        compiled.replace(output)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stderr}")
