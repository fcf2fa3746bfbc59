"""Builds lqray._native, the kernels in csrc/; everything else about the package is in pyproject.toml.

The library is optional: without it lqray runs on its reference operators. LQRAY_NATIVE=0 skips it. CPU kernels are
built wherever a C++ compiler is; CUDA kernels where nvcc and a torch built for CUDA are, whether or not a GPU is in
sight. LQRAY_CUDA=1 makes their absence an error, LQRAY_CUDA=0 leaves them out. TORCH_CUDA_ARCH_LIST chooses
architectures. LQRAY_SANITIZE=1 builds with AddressSanitizer and UBSan, for tests.

python setup.py cuda_check   compiles the CUDA kernels with warnings as errors, refuses spilled registers, links the
                             binding; runs nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
TORCH_ABI = "0x020a000000000000"  # the stable ABI of torch 2.10, which later ones keep
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
# No contraction: a * b + c rounds twice on every backend, so that all give the same bytes.
CXX_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-Wno-unused-parameter", "-Wno-maybe-uninitialized", f"-DTORCH_TARGET_VERSION={TORCH_ABI}"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--threads=0", "-Xcompiler", "-fPIC"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


def say(text: str) -> None:
    """Print what was chosen, even where pip hides the output of builds."""
    print(f"lqray: {text}", file=sys.stderr, flush=True)


def torch_folder() -> Path | None:
    """Of the torch that the library is built against."""
    try:
        import torch
    except ImportError:
        return None
    return Path(torch.__file__).parent


def torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def cuda_home() -> Path | None:
    """CUDA's folder, of CUDA_HOME, of the nvcc on the PATH, or the usual place."""
    found = [os.environ.get("CUDA_HOME"), shutil.which("nvcc"), "/usr/local/cuda"]
    for place in (Path(one) for one in found if one):
        nvcc = place if place.is_file() else place / "bin" / "nvcc"
        if nvcc.is_file():  # it may be a wrapper: ask it where it really is
            top = re.search(r"^#\$ TOP=(.*)$", run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]), re.MULTILINE)
            return Path(top.group(1)).resolve() if top else nvcc.resolve().parent.parent
    return None


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def run(command: list[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def architectures() -> list[str]:
    """nvcc's -gencode options."""
    options = []
    for name in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES):
        number = name.removesuffix("+PTX").replace(".", "")
        kinds = f"[sm_{number},compute_{number}]" if name.endswith("+PTX") else f"sm_{number}"
        options += ["-gencode", f"arch=compute_{number},code={kinds}"]
    return options


def compile_cuda(home: Path, object_file: Path, *more: str) -> str:
    object_file.parent.mkdir(parents=True, exist_ok=True)
    nvcc = home / "bin" / "nvcc"
    return run([nvcc, *NVCC_FLAGS, *architectures(), *more, "-c", ROOT / "csrc/quantize_cuda.cu", "-o", object_file])


def link(output: Path, sources: list[str], cuda: tuple[Path, Path] | None, *more: str) -> None:
    """One shared library of C++ sources and, of (CUDA's folder, object file), the CUDA kernels."""
    torch = torch_folder()
    output.parent.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [compiler() or "g++", *CXX_FLAGS, *more, "-shared", "-I", torch / "include"]
    libraries = ["-L", torch / "lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    if cuda:
        # Named where torch has it: -ltorch alone does not bring its symbols, and a library whose needs are not met
        # does not load.
        libraries += ["-ltorch_cuda"] if (torch / "lib" / "libtorch_cuda.so").is_file() else []
        command.append("-DUSE_CUDA")
        places = [part for name in ("lib64", "lib") for part in ("-L", cuda[0] / name)]
        libraries = [cuda[1], *libraries, *places, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    run([*command, *(ROOT / "csrc" / source for source in sources), "-o", output, *libraries])


class BuildNative(build_ext):
    """Builds what can be built here and says what and why; fails only where LQRAY_CUDA=1 asks for the impossible."""

    def run(self) -> None:
        """Leave no library of before beside the sources: it would be taken for this build's."""
        if self.inplace or getattr(self, "editable_mode", False):
            for stale in (ROOT / "lqray").glob("_native*.so"):
                stale.unlink()
        super().run()

    def build_extensions(self) -> None:
        """Compile and link; a machine that cannot gets an installation without the library."""
        self.extensions = [ext for ext in self.extensions if self._built(ext)]

    def _built(self, ext: Extension) -> bool:
        output = Path(self.get_ext_fullpath(ext.name))
        output.unlink(missing_ok=True)
        reason = self._why_not()
        if reason:
            say(f"native kernels skipped ({reason}); operators run on their reference")
            return False
        cuda = self._cuda()
        sources = ["bind_cpu.cpp", "quantize_cpu.cpp"] + (["bind_cuda.cpp"] if cuda else [])
        sanitizers = SANITIZERS if os.environ.get("LQRAY_SANITIZE") == "1" else []
        try:
            link(output, sources, cuda, *sanitizers)
        except (RuntimeError, OSError) as error:
            if os.environ.get("LQRAY_CUDA") == "1":
                raise
            say(f"native kernels could not be built; operators run on their reference. {error}")
            return False
        say(f"built native kernels for CPU{' and CUDA ' + ' '.join(architectures()[1::2]) if cuda else ''}")
        return True

    def _why_not(self) -> str | None:
        if os.environ.get("LQRAY_NATIVE") == "0":
            return "LQRAY_NATIVE=0"
        if torch_folder() is None:
            return "torch is not installed here; install with --no-build-isolation"
        return None if compiler() else "no C++ compiler found"

    def _cuda(self) -> tuple[Path, Path] | None:
        """CUDA's folder and the compiled kernels, or None with a word why."""
        wanted = os.environ.get("LQRAY_CUDA")
        home = cuda_home()
        missing = []
        if not home:
            missing.append("nvcc is missing (set CUDA_HOME)")
        if not torch_cuda():
            missing.append("torch is built for the CPU only")
        if wanted == "0":
            missing = ["LQRAY_CUDA=0"]
        elif wanted == "1" and missing:
            raise SystemExit(f"lqray: LQRAY_CUDA=1, but {' and '.join(missing)}")
        if missing:
            say(f"CUDA kernels left out: {', '.join(missing)}")
            return None
        object_file = Path(self.build_temp) / "quantize_cuda.o"
        compile_cuda(home, object_file)
        return home, object_file


class CudaCheck(Command):
    """Compiles and links everything CUDA that this machine can; needs nvcc, no GPU and no torch built for CUDA."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """Nothing to set."""

    def finalize_options(self) -> None:
        """Nothing to check."""

    def run(self) -> None:
        """Raises SystemExit with the reason when something does not compile, warns or spills."""
        home = cuda_home()
        if not home:
            raise SystemExit("lqray: cuda_check needs nvcc; set CUDA_HOME")
        folder = ROOT / "build" / "cuda_check"
        log = compile_cuda(home, folder / "quantize_cuda.o", "-Werror", "all-warnings", "-Xptxas", "-v")
        spills = [line for line in log.splitlines() if "spill" in line]
        bad = [line for line in spills if "0 bytes spill stores, 0 bytes spill loads" not in line]
        if bad or not spills:
            raise SystemExit("lqray: registers spill:\n" + "\n".join(bad or [log]))
        link(folder / "native_cuda.so", ["bind_cuda.cpp"], (home, folder / "quantize_cuda.o"), "-Werror")
        registers = max(int(number) for number in re.findall(r"Used (\d+) registers", log))
        say(f"cuda_check: {len(spills)} kernels without spills, at most {registers} registers; the binding links")


setup(
    ext_modules=[Extension("lqray._native", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildNative, "cuda_check": CudaCheck},
)
