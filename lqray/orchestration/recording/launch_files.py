"""Artifacts that the runs of a launch share: with what machine, packages and code it ran. Made once.

Where artifacts are files on this machine, every run has them, as hard links to those of the launch's first run: links
take no room. Elsewhere each would be an upload for every run: they go up with the first run of the launch, and the tag
`lqray.launch_files` of the others names that run.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from lqray.experiment.secrets import masked
from lqray.orchestration.provenance import code_changes
from lqray.store.tags import LAUNCH_FILES


class LaunchFiles:
    """Those of one launch. uri: of its store. machine: what `lqray doctor` says of this machine, for that address."""

    def __init__(self, uri: str, machine: Callable[[str], str] | None = None) -> None:
        self._uri, self._machine = uri, machine
        self._made: dict[str, str] | None = None
        self._links: dict[str, Path] = {}
        self._holder: str | None = None

    def give(self, client: Any, run: Any, own: Mapping[str, str], below: str = "") -> None:
        """Write a run's own text files and the launch's beside them. run: MLflow's Run. below: folder of the launch's
        files, for a run that has those of an earlier launch, too."""
        run_id = run.info.run_id
        place = local_folder(run.info.artifact_uri)
        if self._made is None:
            self._made = launch_files(self._machine(self._uri) if self._machine else "")
        shared = {str(Path(below) / name): text for name, text in self._made.items()}
        if place is not None:
            _write(place, own)
            if self._links:
                for name, text in self._made.items():
                    _link(self._links[name], place / below / name, text)
            else:
                _write(place, shared)
                self._links = {name: place / below / name for name in self._made}
            return
        first = self._holder is None
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), {**own, **(shared if first else {})})
            if own or first:
                client.log_artifacts(run_id, folder)
        if first:
            self._holder = run_id
        else:
            client.set_tag(run_id, LAUNCH_FILES, self._holder)

    def complete(self, client: Any, run: Any, own: Mapping[str, str]) -> None:
        """Write those of a run's own text files that are not there."""
        place = local_folder(run.info.artifact_uri)
        if place is not None:
            there = {name for name in own if (place / name).exists()}
        else:
            there = {one.path for one in client.list_artifacts(run.info.run_id)}
        write_texts(client, run, {name: own[name] for name in sorted(set(own) - there)})


def launch_files(machine: str) -> dict[str, str]:
    """doctor.txt: what `lqray doctor` prints, passwords of addresses masked, if anything. requirements.txt: installed
    packages. git.diff: what was changed in lqray's code since the last commit, where anything was; at most 1 MiB, and
    says so where it is cut."""
    packages = {f"{one.metadata['Name']}=={one.version}" for one in importlib.metadata.distributions()}
    files = {
        "doctor.txt": masked(machine),
        "requirements.txt": "\n".join(sorted(packages, key=str.lower)),
        "git.diff": masked(code_changes()).removesuffix("\n"),
    }
    return {name: f"{text}\n" for name, text in files.items() if text}


def write_texts(client: Any, run: Any, texts: Mapping[str, str]) -> None:
    """Write texts of a run as artifacts. MLflow's client makes a temporary folder for each, which stays where its
    process is killed: where artifacts are files on this machine, they are written without."""
    place = local_folder(run.info.artifact_uri)
    if place is not None:
        _write(place, texts)
        return
    for name, text in texts.items():
        client.log_text(run.info.run_id, text, name)


def local_folder(artifact_uri: str) -> Path | None:
    """The folder that an artifact URI names on this machine; None where it names another place."""
    parsed = urlparse(artifact_uri)
    if parsed.scheme == "file" and parsed.netloc in ("", "localhost"):
        return Path(url2pathname(parsed.path))
    return Path(artifact_uri) if not parsed.scheme else None


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(file, text)


def _write_whole(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(file)
    except OSError:  # no room: half a file would look like all of it
        aside.unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path, text: str) -> None:
    """A file of its own where no link can be made, or somebody has deleted the first run."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        _write_whole(target, text)
