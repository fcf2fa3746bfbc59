"""Builds lqray._native and lqray._native_cuda, the kernels in csrc/; everything else about the package is in
pyproject.toml.

Both libraries are optional: without one, lqray runs on its reference operators there. LQRAY_NATIVE=0 skips both. CPU
kernels are built wherever a C++ compiler is; CUDA kernels where nvcc and a torch built for the same CUDA are, whether
or not a GPU is in sight. LQRAY_CUDA=1 makes their absence an error, LQRAY_CUDA=0 leaves them out. TORCH_CUDA_ARCH_LIST
chooses architectures. LQRAY_SANITIZE=1 builds with AddressSanitizer and UBSan, for tests.

python setup.py cuda_check   compiles the CUDA kernels with warnings as errors, refuses spilled registers, links their
                             library into build/cuda_check; runs nothing.
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
# Those of them that nvcc knows, and PTX of the last one for what comes later. 8.0 serves 8.6 and 8.9, too.
DEFAULT_ARCHITECTURES = ("70", "75", "80", "90", "100", "120")
CPU_SOURCES = ["bind_cpu.cpp", "quantize_cpu.cpp", "quantize_cpu_avx2.cpp", "quantize_cpu_avx512.cpp"]
# No contraction: a * b + c rounds twice on every backend, so that all give the same bytes.
CXX_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-Wno-unused-parameter", "-Wno-maybe-uninitialized", f"-DTORCH_TARGET_VERSION={TORCH_ABI}"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--threads=0", "-Xcompiler", "-fPIC"]
# Of a thread: ptxas gives up a few registers where one more warp fits a processor by it.
SPILLED_BYTES = 32
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


def architectures(home: Path) -> list[str]:
    """What to compile for, as nvcc's -code has it: "sm_80" is machine code, "compute_80" is PTX."""
    chosen = [name for name in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if name]
    if not chosen:
        known = run([home / "bin" / "nvcc", "--list-gpu-code"]).split()
        chosen = [number for number in DEFAULT_ARCHITECTURES if f"sm_{number}" in known]
        chosen[-1] += "+PTX"
    names = []
    for name in chosen:
        number = name.removesuffix("+PTX").replace(".", "")
        names += [f"sm_{number}", f"compute_{number}"] if name.endswith("+PTX") else [f"sm_{number}"]
    return names


def compile_cuda(home: Path, object_file: Path, *more: str) -> str:
    object_file.parent.mkdir(parents=True, exist_ok=True)
    options, names = [], architectures(home)
    for number in dict.fromkeys(name.partition("_")[2] for name in names):
        codes = ",".join(name for name in names if name.endswith(f"_{number}"))
        options += ["-gencode", f"arch=compute_{number},code=[{codes}]"]
    source = ROOT / "csrc/quantize_cuda.cu"
    return run([home / "bin" / "nvcc", *NVCC_FLAGS, *options, *more, "-c", source, "-o", object_file])


def link(output: Path, sources: list[str], more: list[str], libraries: list[str | Path]) -> None:
    """One shared library of C++ sources and other libraries, on torch's stable ABI. more: options of the compiler."""
    torch = torch_folder()
    output.parent.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [compiler() or "g++", *CXX_FLAGS, *more, "-shared", "-I", torch / "include"]
    command += [ROOT / "csrc" / source for source in sources]
    run([*command, "-o", output, *libraries, "-L", torch / "lib", "-ltorch_cpu", "-lc10"])


def link_cuda(output: Path, home: Path, object_file: Path, torch_cuda_folder: Path, *more: str) -> None:
    """The library of CUDA kernels. torch_cuda_folder: has libtorch_cuda.so.

    libtorch_cuda is needed whatever the linker thinks of it, and a symbol that no library here defines is an error of
    this link, not of every later load. CUDA's runtime is linked in: torch's own may have another name.
    """
    named = f'-DLQRAY_CUDA_ARCHITECTURES="{" ".join(architectures(home))}"'
    needed = ["-L", torch_cuda_folder, "-Wl,--push-state,--no-as-needed", "-ltorch_cuda", "-Wl,--pop-state"]
    runtime = [part for name in ("lib64", "lib") for part in ("-L", home / name)]
    runtime += ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,-z,defs"]
    link(output, ["bind_cuda.cpp"], ["-DUSE_CUDA", named, *more], [object_file, *needed, *runtime])


def stand_in(folder: Path) -> Path:
    """A libtorch_cuda of nothing but what the kernels' library uses of it, to link against where torch has none."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "torch_cuda.cpp"
    source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    name = "libtorch_cuda.so"
    run([compiler() or "g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", folder / name])
    return folder


def why_not_cuda() -> str | None:
    """What keeps the CUDA kernels from being built here."""
    home, torch = cuda_home(), torch_cuda()
    missing = [] if home else ["nvcc is missing (set CUDA_HOME)"]
    if not torch:
        missing.append("torch is built for the CPU only")
    if missing:
        return " and ".join(missing)
    release = re.search(r"release (\d+)", run([home / "bin" / "nvcc", "--version"]))
    if release and release.group(1) != torch.partition(".")[0]:  # a driver for the one may be too old for the other
        return f"{home} is CUDA {release.group(1)}, and torch is built for CUDA {torch} (set CUDA_HOME)"
    return None


def is_cuda(ext: Extension) -> bool:
    return ext.name.endswith("_cuda")


class BuildNative(build_ext):
    """Builds what can be built here and says what and why; fails only where LQRAY_CUDA=1 asks for the impossible."""

    def run(self) -> None:
        """Leave no library of before beside the sources: it would be taken for this build's."""
        if self.inplace or getattr(self, "editable_mode", False):
            for stale in (ROOT / "lqray").glob("_native*.so"):
                stale.unlink()
        super().run()

    def build_extensions(self) -> None:
        """Compile and link; a machine that cannot gets an installation without the library. Raises SystemExit with the
        reason where LQRAY_CUDA=1."""
        reasons = {ext.name: self._why_not(ext) for ext in self.extensions}
        missing = next(filter(None, reasons.values()), None)
        if missing and os.environ.get("LQRAY_CUDA") == "1":
            raise SystemExit(f"lqray: LQRAY_CUDA=1, but {missing}")
        self.extensions = [ext for ext in self.extensions if self._built(ext, reasons[ext.name])]

    def _why_not(self, ext: Extension) -> str | None:
        if os.environ.get("LQRAY_NATIVE") == "0":
            return "LQRAY_NATIVE=0"
        if is_cuda(ext) and os.environ.get("LQRAY_CUDA") == "0":
            return "LQRAY_CUDA=0"
        if torch_folder() is None:
            return "torch is not installed here; install with --no-build-isolation"
        if not compiler():
            return "no C++ compiler found"
        return why_not_cuda() if is_cuda(ext) else None

    def _built(self, ext: Extension, reason: str | None) -> bool:
        output = Path(self.get_ext_fullpath(ext.name))
        output.unlink(missing_ok=True)
        kernels = f"native kernels for {'CUDA' if is_cuda(ext) else 'CPU'}"
        if reason:
            say(f"{kernels} skipped ({reason}); operators run on their reference there")
            return False
        try:
            say(f"built {kernels}{self._build_cuda(output) if is_cuda(ext) else self._build_cpu(output)}")
        except (RuntimeError, OSError) as error:
            if os.environ.get("LQRAY_CUDA") == "1":
                raise
            say(f"{kernels} could not be built; operators run on their reference there. {error}")
            return False
        return True

    def _build_cpu(self, output: Path) -> str:
        sanitizers = SANITIZERS if os.environ.get("LQRAY_SANITIZE") == "1" else []
        link(output, CPU_SOURCES, sanitizers, [])
        return ""

    def _build_cuda(self, output: Path) -> str:
        home, object_file = cuda_home(), Path(self.build_temp) / "quantize_cuda.o"
        compile_cuda(home, object_file)
        link_cuda(output, home, object_file, torch_folder() / "lib")
        return f": {' '.join(architectures(home))}"


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
        spills = [int(number) for number in re.findall(r"(\d+) bytes spill stores", log)]
        if not spills or max(spills) > SPILLED_BYTES:
            raise SystemExit(f"lqray: registers spill, up to {max(spills, default=0)} bytes of a thread:\n{log}")
        place = torch_folder() / "lib"
        if not (place / "libtorch_cuda.so").is_file():
            place = stand_in(folder / "stand_in")
        link_cuda(folder / "_native_cuda.abi3.so", home, folder / "quantize_cuda.o", place, "-Werror")
        registers = max(int(number) for number in re.findall(r"Used (\d+) registers", log))
        say(
            f"cuda_check: {len(spills)} kernels, at most {registers} registers and {max(spills)} bytes spilled; "
            f"linked for {' '.join(architectures(home))}"
        )


setup(
    ext_modules=[Extension(f"lqray.{name}", sources=[], py_limited_api=True) for name in ("_native", "_native_cuda")],
    cmdclass={"build_ext": BuildNative, "cuda_check": CudaCheck},
)
