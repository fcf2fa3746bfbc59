"""Builds the emulated library of a folder of kernels, in several variants."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch

from tests.ops.emulation.translate import NotUnderstoodError, translate

MACHINE = Path(__file__).parent / "machine"
TORCH = Path(torch.__file__).parent
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
FLAGS += ["-Wno-sign-compare", "-Wno-unused-function", "-Wno-maybe-uninitialized"]
# What the kernels, and only they, are compiled with besides.
VARIANTS = {
    "plain": [],
    "ucontext": [],
    "races": ["-fsanitize=thread"],
    "bounds": ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
}


class BuildError(Exception):
    """What the compiler, or the translation, said."""


def compiler() -> str | None:
    """As in setup.py."""
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


def build(variant: str, csrc: Path, folder: Path) -> Path:
    """The library of a variant in `folder`, where what other variants left is used. Raises BuildError."""
    kernels = folder / f"kernels_{variant}.cpp"
    try:
        kernels.write_text(translate((csrc / "quantize_cuda.cu").read_text(), str(csrc / "quantize_cuda.cu")))
    except NotUnderstoodError as error:
        raise BuildError(str(error)) from error
    compiled = [_compile(kernels, kernels.with_suffix(".o"), csrc, *VARIANTS[variant])]
    portable = ["-DLQRAY_EMULATED_UCONTEXT"] if variant == "ucontext" else []
    for source in ("scheduler", "accesses"):
        compiled.append(_kept(MACHINE / f"{source}.cpp", folder / f"{source}{'_ucontext' if portable else ''}.o", csrc, "-O2", *portable))
    compiled.append(build_binding(csrc, folder))
    library = folder / f"emulated_{variant}.so"
    sanitizers = [flag for flag in VARIANTS[variant] if flag.startswith("-fsanitize=address")]
    libraries = ["-L", TORCH / "lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    _run([compiler() or "g++", "-shared", *sanitizers, *compiled, "-o", library, *libraries])
    return library


def build_binding(csrc: Path, folder: Path) -> Path:
    """The operators of torch.ops.lqray for tensors of the CPU, whose memory is the emulated device's."""
    text = (csrc / "bind_cuda.cpp").read_text()
    key = "STABLE_TORCH_LIBRARY_IMPL(lqray, CUDA, m)"
    if text.count(key) != 1:
        raise BuildError(f"bind_cuda.cpp: {key} is not there once")
    source = folder / "bind_emulated.cpp"
    source.write_text(f'#line 1 "{csrc / "bind_cuda.cpp"}"\n' + text.replace(key, key.replace("lqray, CUDA", "lqray, CPU")))
    return _kept(source, folder / "bind_emulated.o", csrc)


def _kept(source: Path, output: Path, csrc: Path, *flags: str) -> Path:
    return output if output.exists() else _compile(source, output, csrc, *flags)


def _compile(source: Path, output: Path, csrc: Path, *flags: str) -> Path:
    abi = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    partial = output.with_suffix(f".{os.getpid()}.o")
    where = ["-I", MACHINE, "-I", csrc, "-isystem", TORCH / "include"]
    _run([compiler() or "g++", *FLAGS, *flags, abi, *where, "-c", source, "-o", partial])
    return partial.replace(output)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stderr}")
