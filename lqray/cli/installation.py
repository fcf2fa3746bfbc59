"""Commands for the first minutes after an installation: init, build-native."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from lqray.cli import shared


@click.command()
@click.argument("folder", required=False, default="experiments", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace files that differ from lqray's.")
def init(folder: Path, overwrite: bool) -> None:
    """Write lqray's experiment files, quickstart.yaml first of all, to FOLDER [default: experiments].

    A file that is there stays as it is, unless --overwrite is given.
    """
    from lqray.carried import carried

    source = carried("experiments")
    if source is None:
        shared.say(
            "Error: this lqray came without its experiments; install it from its source tree or a wheel", err=True
        )
        sys.exit(2)
    counts = {"written": 0, "equal": 0}
    with shared.clear_errors():
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.glob("*.yaml")):
            target, content = folder / file.name, file.read_bytes()
            if target.exists() and target.read_bytes() == content:
                counts["equal"] += 1
            elif target.exists() and not overwrite:
                shared.say(f"kept {target}, which differs from lqray's; --overwrite replaces it", err=True)
            else:
                target.write_bytes(content)
                counts["written"] += 1
    equal = f", {counts['equal']} were there already" if counts["equal"] else ""
    shared.say(f"{counts['written']} experiment files written to {folder}{equal}. The first one takes three minutes:")
    shared.say(f"  {shared.program()} run {shlex.quote(shared.in_command(folder / 'quickstart.yaml'))}")


@click.command("build-native")
def build_native() -> None:
    """Compile the native kernels against the torch that is installed here: those for the CPU where a C++ compiler is,
    those for CUDA where nvcc and a torch for the same CUDA are, too.

    The libraries lie beside the package or, where that cannot be written to, in the user's cache. LQRAY_CUDA=1 makes it
    an error that CUDA kernels cannot be built, LQRAY_CUDA=0 leaves them out, TORCH_CUDA_ARCH_LIST chooses GPUs, CXX and
    CUDA_HOME the compilers. Exit code 1 when no kernels could be built.
    """
    from lqray.kernels import build, libraries

    folder = libraries.destination()
    with shared.clear_errors(build.BuildError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        outputs = {name: folder / f"{name}.abi3.so" for name in libraries.NAMES}
        reasons = build.build(outputs, shared.say)
    if all(reasons.values()):
        sys.exit(1)
    shared.say(f"in {folder}")
    from lqray.orchestration.doctor.local import operator_findings, shown

    broken = False
    for finding in operator_findings():
        broken = broken or finding.state == "broken"
        shared.say(shown(finding))
    sys.exit(broken)
