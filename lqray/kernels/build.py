"""Compiles the native libraries, of CPU kernels and of CUDA kernels, from csrc/, against the torch that is installed.

Both are optional: without one, lqray runs on its reference operators there. LQRAY_NATIVE=0 skips both. CPU kernels are
built wherever a C++ compiler is; CUDA kernels where nvcc and a torch built for the same CUDA are, whether or not a GPU
is in sight. LQRAY_CUDA=1 makes their absence an error, LQRAY_CUDA=0 leaves them out. TORCH_CUDA_ARCH_LIST chooses
architectures. LQRAY_SANITIZE=1 builds with AddressSanitizer and UBSan, for tests.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lqray.carried import carried
from lqray.kernels.libraries import digest

TORCH_ABI = "0x020a000000000000"  # the stable ABI of torch 2.10, which later ones keep
# Those of them that nvcc knows, and PTX of the last one for what comes later. 8.0 serves 8.6 and 8.9, too.
DEFAULT_ARCHITECTURES = ("70", "75", "80", "90", "100", "120")
CPU_SOURCES = ["bind_cpu.cpp", "quantize_cpu.cpp", "quantize_cpu_avx2.cpp", "quantize_cpu_avx512.cpp"]
CPU_SOURCES += ["bind_eden_cpu.cpp", "eden_cpu.cpp", "bind_allocation_cpu.cpp", "allocation_cpu.cpp"]
CPU_SOURCES += ["bind_grids_cpu.cpp", "grids_cpu.cpp", "grids_cpu_avx2.cpp", "grids_cpu_avx512.cpp"]
CPU_SOURCES += ["bind_rans.cpp", "rans_cpu.cpp", "rans_cpu_avx2.cpp", "rans_cpu_avx512.cpp"]
CPU_SOURCES += ["bind_slopes_cpu.cpp", "slopes_cpu.cpp", "slopes_cpu_avx2.cpp", "slopes_cpu_avx512.cpp"]
CUDA_SOURCES = ["quantize_cuda.cu", "eden_cuda.cu", "allocation_cuda.cu"]
CUDA_BINDINGS = ["bind_cuda.cpp", "bind_blocks_cuda.cpp"]
# No contraction: a * b + c rounds twice on every backend, so that all give the same bytes.
CXX_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-Wno-unused-parameter", "-Wno-maybe-uninitialized", f"-DTORCH_TARGET_VERSION={TORCH_ABI}"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--threads=0", "-Xcompiler", "-fPIC"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


class BuildError(RuntimeError):
    """A compiler's words, or what keeps kernels that were asked for from being built."""


def build(outputs: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, str | None]:
    """Build what can be built here; why each that was not was not, in words, and None for those that were.

    outputs: the files to write, by name, of `libraries.NAMES`; a library of before gives way even where none takes its
    place, since it would be taken for this build's. say: is told of each what was chosen. Raises BuildError where
    LQRAY_CUDA=1 asks for the impossible.
    """
    reasons = {name: _why_not(name) for name in outputs}
    wanted = os.environ.get("LQRAY_CUDA") == "1"
    missing = next(filter(None, reasons.values()), None)
    if missing and wanted:
        raise BuildError(f"LQRAY_CUDA=1, but {missing}")
    for name, output in outputs.items():
        kernels = f"native kernels for {'CUDA' if _is_cuda(name) else 'CPU'}"
        if reasons[name]:
            output.unlink(missing_ok=True)
            say(f"{kernels} skipped ({reasons[name]}); operators run on their reference there")
            continue
        try:
            said = _build(name, output)
        except (BuildError, OSError) as error:
            output.unlink(missing_ok=True)
            if wanted:
                raise
            reasons[name] = str(error)
            say(f"{kernels} could not be built; operators run on their reference there. {error}")
        else:
            say(f"built {kernels}{said}")
    return reasons


def is_possible() -> bool:
    """Whether this environment has what CPU kernels want, at a glance."""
    asked = os.environ.get("LQRAY_NATIVE") != "0"
    return asked and importlib.util.find_spec("torch") is not None and compiler() is not None


def _is_cuda(name: str) -> bool:
    return name.endswith("_cuda")


def _why_not(name: str) -> str | None:
    if os.environ.get("LQRAY_NATIVE") == "0":
        return "LQRAY_NATIVE=0"
    if _is_cuda(name) and os.environ.get("LQRAY_CUDA") == "0":
        return "LQRAY_CUDA=0"
    if torch_folder() is None:
        return "torch is not installed here; where it is, `lqray build-native` compiles them"
    if carried("csrc") is None:
        return "their sources are not here"
    if not compiler():
        return "no C++ compiler found"
    return _why_not_cuda() if _is_cuda(name) else None


def _why_not_cuda() -> str | None:
    home, torch = cuda_home(), _torch_cuda()
    missing = [] if home else ["nvcc is missing (set CUDA_HOME)"]
    if not torch:
        missing.append("torch is built for the CPU only")
    if home is None or torch is None:
        return " and ".join(missing)
    release = re.search(r"release (\d+)", run([home / "bin" / "nvcc", "--version"]))
    if release and release.group(1) != torch.partition(".")[0]:  # a driver for the one may be too old for the other
        return f"{home} is CUDA {release.group(1)}, and torch is built for CUDA {torch} (set CUDA_HOME)"
    return None


def _build(name: str, output: Path) -> str:
    """Build a library beside its place and then put it there: a process may have the one of before loaded. Returns what
    is to be said of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lqray-build-", dir=output.parent) as scratch:
        library = Path(scratch) / output.name
        if _is_cuda(name):
            home, torch = cuda_home(), torch_folder()
            assert home
            assert torch
            objects, _ = compile_cuda(home, Path(scratch))
            link_cuda(library, home, objects, torch / "lib")
            said = f": {' '.join(architectures(home))}"
        else:
            link(library, CPU_SOURCES, SANITIZERS if os.environ.get("LQRAY_SANITIZE") == "1" else [], [])
            said = ""
        library.replace(output)
    return said


def torch_folder() -> Path | None:
    """Of the torch that libraries are built against."""
    try:
        import torch
    except ImportError:
        return None
    return Path(str(torch.__file__)).parent


def _torch_cuda() -> str | None:
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
    """The C++ compiler: CXX, or the first of the usual ones."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def run(command: Iterable[str | Path]) -> str:
    """What a command says. Raises BuildError with it where the command fails."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
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


def compile_cuda(home: Path, folder: Path, *more: str) -> tuple[list[Path], str]:
    """The CUDA kernels as object files in a folder; what nvcc said. more: options of nvcc. Raises BuildError."""
    folder.mkdir(parents=True, exist_ok=True)
    options: list[str] = []
    names = architectures(home)
    for number in dict.fromkeys(name.partition("_")[2] for name in names):
        codes = ",".join(name for name in names if name.endswith(f"_{number}"))
        options += ["-gencode", f"arch=compute_{number},code=[{codes}]"]
    objects = [folder / Path(source).with_suffix(".o") for source in CUDA_SOURCES]
    nvcc: list[str | Path] = [home / "bin" / "nvcc", *NVCC_FLAGS, *options, *more]
    said = [run([*nvcc, "-c", _csrc() / source, "-o", one]) for source, one in zip(CUDA_SOURCES, objects, strict=True)]
    return objects, "".join(said)


def link(output: Path, sources: list[str], more: list[str], libraries: list[str | Path]) -> None:
    """One shared library of C++ sources and other libraries, on torch's stable ABI, which says what it was built from.
    more: options of the compiler. Raises BuildError."""
    torch = torch_folder()
    if torch is None:
        raise BuildError("torch is not installed here")
    output.parent.mkdir(parents=True, exist_ok=True)
    said = f'-DLQRAY_SOURCES="{digest()}"'
    command: list[str | Path] = [compiler() or "g++", *CXX_FLAGS, said, *more, "-shared", "-I", torch / "include"]
    command += [_csrc() / source for source in sources]
    run([*command, "-o", output, *libraries, "-L", torch / "lib", "-ltorch_cpu", "-lc10"])


def link_cuda(output: Path, home: Path, objects: list[Path], torch_cuda_folder: Path, *more: str) -> None:
    """The library of CUDA kernels. objects: of `compile_cuda`. torch_cuda_folder: has libtorch_cuda.so. Raises
    BuildError.

    libtorch_cuda is needed whatever the linker thinks of it, and a symbol that no library here defines is an error of
    this link, not of every later load. CUDA's runtime is linked in: torch's own may have another name.
    """
    named = f'-DLQRAY_CUDA_ARCHITECTURES="{" ".join(architectures(home))}"'
    needed: list[str | Path] = ["-L", torch_cuda_folder, "-Wl,--push-state,--no-as-needed"]
    needed += ["-ltorch_cuda", "-Wl,--pop-state"]
    runtime = [part for name in ("lib64", "lib") for part in ("-L", home / name)]
    runtime += ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,-z,defs"]
    link(output, CUDA_BINDINGS, ["-DUSE_CUDA", named, *more], [*objects, *needed, *runtime])


def stand_in(folder: Path) -> Path:
    """A libtorch_cuda of nothing but what the kernels' library uses of it, to link against where torch has none."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "torch_cuda.cpp"
    source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    name = "libtorch_cuda.so"
    run([compiler() or "g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", folder / name])
    return folder


def _csrc() -> Path:
    folder = carried("csrc")
    if folder is None:
        raise BuildError("the kernels' sources are not here")
    return folder
