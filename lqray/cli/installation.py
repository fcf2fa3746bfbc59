"""Commands for the first minutes after an installation: init, build-native."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from lqray.cli import shared


@click.command()
@click.argument("directory", required=False, default="experiments", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace files of lqray's that differ; never your own experiment.")
@click.option("--examples/--no-examples", default=True, show_default=True, help="Also write lqray's own experiments.")
def init(directory: Path, overwrite: bool, examples: bool) -> None:
    """Write an experiment of your own, with every section explained, to DIRECTORY [default: experiments], and lqray's
    experiment files, quickstart.yaml among them, beside it.

    Yours is called as the directory is, or `first`, and takes about a minute. A file that is there stays as it is; one
    of lqray's is replaced with --overwrite.
    """
    from lqray.carried import carried
    from lqray.cli.first_experiment import first_experiment, name_of

    source = carried("experiments")
    if source is None and examples:
        shared.say(
            "Error: this lqray came without its experiments; install it from its source tree or a wheel, or call "
            f"`{shared.program()} init --no-examples`",
            err=True,
        )
        sys.exit(2)
    files = sorted(source.glob("*.yaml")) if source else []
    own = directory / f"{name_of(directory, [one.stem for one in files])}.yaml"
    with shared.clear_errors():
        directory.mkdir(parents=True, exist_ok=True)
        if examples:
            _copy(files, directory, overwrite)
        if own.exists():
            shared.say(f"kept {own}, your experiment")
        else:
            own.write_text(first_experiment(own.stem), encoding="utf-8")
            shared.say(f"{own} is an experiment of your own: read it, and change what you like.")
    _say_what_next(own, directory / "quickstart.yaml" if examples else None)


def _copy(files: Sequence[Path], directory: Path, overwrite: bool) -> None:
    counts = {"written": 0, "equal": 0}
    for file in files:
        target, content = directory / file.name, file.read_bytes()
        if target.exists() and target.read_bytes() == content:
            counts["equal"] += 1
        elif target.exists() and not overwrite:
            shared.say(f"kept {target}, which differs from lqray's; --overwrite replaces it", err=True)
        else:
            target.write_bytes(content)
            counts["written"] += 1
    equal = f", {counts['equal']} were there already" if counts["equal"] else ""
    shared.say(f"{counts['written']} experiment files written to {directory}{equal}.")


def _say_what_next(own: Path, quickstart: Path | None) -> None:
    """Commands that can be typed as they stand, in this order."""
    lines = [
        ("can it run here? Versions, data, storage", "doctor", own),
        ("its trials", "expand", own),
        ("run them, in about a minute", "run", own),
        ("compare the methods", "report", own),
        ("see the runs in the browser", "ui", own),
    ]
    if quickstart:
        lines.append(("lqray's quickstart, three minutes", "run", quickstart))
    width = max(len(what) for what, _, _ in lines)
    for what, name, file in lines:
        # The command stands last and alone: zsh takes what follows a # for arguments.
        shared.say(f"  {what:{width}}:  {shared.program()} {name} {shlex.quote(shared.in_command(file))}")


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
