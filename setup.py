"""What pyproject.toml cannot say: a wheel carries the kernels' sources and the experiments, and the kernels are
compiled where torch is importable (`--no-build-isolation`). Elsewhere the wheel is pure Python, for every machine, and
`lqray build-native` compiles them later. lqray/kernels/build.py says what is built where, and which variables choose.

python setup.py build_ext --inplace   builds the libraries beside the sources.
python setup.py cuda_check            compiles the CUDA kernels with warnings as errors, refuses spilled registers,
                                      links their library into build/cuda_check; runs nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from lqray.carried import CARRIED  # noqa: E402
from lqray.kernels import build, libraries  # noqa: E402

# Of a thread: ptxas gives up a few registers where one more warp fits a processor by it.
SPILLED_BYTES = 32


def say(text: str) -> None:
    """Print what was chosen, even where pip hides the output of builds."""
    print(f"lqray: {text}", file=sys.stderr, flush=True)


class Lqray(Distribution):
    """Has libraries where they can be built, or where they are asked for, so that their absence is an error."""

    def has_ext_modules(self) -> bool:
        """Decides whether the wheel is of this platform."""
        return build.is_possible() or os.environ.get("LQRAY_CUDA") == "1"


class BuildPackage(build_py):
    """Beside the package's modules, what `lqray.carried` looks for."""

    def run(self) -> None:
        """An editable installation finds it in the tree."""
        super().run()
        if self.editable_mode:
            return
        for folder, patterns in {"csrc": libraries.SOURCES, "experiments": ("*.yaml", "README.md")}.items():
            place = Path(self.build_lib) / "lqray" / CARRIED / folder
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for file in sorted(file for pattern in patterns for file in (ROOT / folder).glob(pattern)):
                shutil.copyfile(file, place / file.name)


class BuildNative(build_ext):
    """Builds what can be built here and says what and why; fails only where LQRAY_CUDA=1 asks for the impossible."""

    def run(self) -> None:
        """Leave no library of before beside the sources, whatever its name: it would be taken for this build's."""
        if self.inplace or self.editable_mode:
            for stale in (ROOT / "lqray").glob("_native*.so"):
                stale.unlink()
        super().run()

    def build_extensions(self) -> None:
        """A machine that cannot compile gets an installation without libraries. Raises SystemExit with the reason where
        LQRAY_CUDA=1."""
        outputs = {ext.name.rpartition(".")[2]: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        try:
            reasons = build.build(outputs, say)
        except build.BuildError as error:
            raise SystemExit(f"lqray: {error}") from None
        self.extensions = [ext for ext in self.extensions if reasons[ext.name.rpartition(".")[2]] is None]


class Wheel(bdist_wheel):
    """Libraries use nothing of Python's: one wheel serves all versions of it."""

    def get_tag(self) -> tuple[str, str, str]:
        """See wheel."""
        return "py3", "none", super().get_tag()[2]


class CudaCheck(Command):
    """Compiles and links everything CUDA that this machine can; needs nvcc, no GPU and no torch built for CUDA."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """Nothing to set."""

    def finalize_options(self) -> None:
        """Nothing to check."""

    def run(self) -> None:
        """Raises SystemExit with the reason when something does not compile, warns or spills."""
        home = build.cuda_home()
        if not home:
            raise SystemExit("lqray: cuda_check needs nvcc; set CUDA_HOME")
        folder = ROOT / "build" / "cuda_check"
        objects, log = build.compile_cuda(home, folder, "-Werror", "all-warnings", "-Xptxas", "-v")
        spills = [int(number) for number in re.findall(r"(\d+) bytes spill stores", log)]
        if not spills or max(spills) > SPILLED_BYTES:
            raise SystemExit(f"lqray: registers spill, up to {max(spills, default=0)} bytes of a thread:\n{log}")
        place = build.torch_folder() / "lib"
        if not (place / "libtorch_cuda.so").is_file():
            place = build.stand_in(folder / "stand_in")
        build.link_cuda(folder / "_native_cuda.abi3.so", home, objects, place, "-Werror")
        registers = max(int(number) for number in re.findall(r"Used (\d+) registers", log))
        say(
            f"cuda_check: {len(spills)} kernels, at most {registers} registers and {max(spills)} bytes spilled; "
            f"linked for {' '.join(build.architectures(home))}"
        )


setup(
    distclass=Lqray,
    ext_modules=[Extension(f"lqray.{name}", sources=[], py_limited_api=True) for name in libraries.NAMES],
    cmdclass={"build_py": BuildPackage, "build_ext": BuildNative, "bdist_wheel": Wheel, "cuda_check": CudaCheck},
)
