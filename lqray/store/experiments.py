"""Experiments as their store has them: which there are, whether one can be recorded in, and where its files are to be.
Nothing here makes an experiment."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from lqray.experiment.foreign import in_line
from lqray.experiment.layout import CLAIMS
from lqray.experiment.store import store_folder
from lqray.store import tables
from lqray.store.errors import NoStoreError, StoreError

ARTIFACTS = "lqray-artifacts"
"""The folder beside a sqlite store that holds the artifacts of its experiments, one folder each."""


@dataclass(frozen=True)
class StoredExperiment:
    """id: MLflow's. location: the URI below which the artifacts of its runs are kept. trashed: it was deleted, and can
    be restored."""

    id: str
    name: str
    location: str
    trashed: bool = False


@dataclass(frozen=True)
class ActiveExperiment:
    """id: MLflow's. tags: all of it."""

    id: str
    tags: Mapping[str, str]


class UnknownExperimentError(LookupError):
    """No experiment of this name in the store."""


def active_experiments(uri: str) -> dict[str, ActiveExperiment]:
    """By name, those that were not deleted. Raises NoStoreError, StoreError, StoreAwayError."""
    return tables.read(
        uri,
        lambda connection: {
            name: ActiveExperiment(number, tags) for name, (number, tags) in tables.experiments_of(connection).items()
        },
        lambda client: {one.name: ActiveExperiment(one.experiment_id, one.tags) for one in client.search_experiments()},
    )


def sweeps_of(uri: str) -> list[str]:
    """Names of the experiments that may hold runs of lqray."""
    return [name for name in active_experiments(uri) if name not in ("Default", CLAIMS)]


def experiment_id(uri: str, experiment: str) -> str:
    """MLflow's id of an experiment. Raises UnknownExperimentError, with the names that there are."""
    return _known(uri, experiment).id


def experiment_tags(uri: str, experiment: str) -> Mapping[str, str]:
    """Tags of an experiment. Raises UnknownExperimentError."""
    return _known(uri, experiment).tags


def unknown_experiment(uri: str, experiment: str, known: Collection[str]) -> UnknownExperimentError:
    """To be raised."""
    names = ", ".join(map(in_line, sorted(set(known) - {CLAIMS}))) or "none"
    return UnknownExperimentError(f"no experiment {experiment!r} in {uri}; there are: {names}")


def _known(uri: str, experiment: str) -> ActiveExperiment:
    found = active_experiments(uri)
    if experiment not in found:
        raise unknown_experiment(uri, experiment, found)
    return found[experiment]


def stored_experiment(uri: str, name: str) -> StoredExperiment | None:
    """The experiment of this name, also one that was deleted; None where there is none, or no store. Raises StoreError,
    StoreAwayError."""

    def of_client(client: Any) -> StoredExperiment | None:
        found = client.get_experiment_by_name(name)
        if found is None:
            return None
        trashed = found.lifecycle_stage == "deleted"
        return StoredExperiment(found.experiment_id, name, found.artifact_location, trashed)

    def of_tables(connection: Any) -> StoredExperiment | None:
        rows = tables.experiments_named(connection, name)
        return StoredExperiment(*rows[0]) if rows else None

    try:
        return tables.read(uri, of_tables, of_client)
    except NoStoreError:
        return None


def check_usable(uri: str, name: str) -> None:
    """Raise StoreError where runs of this experiment could not be recorded as its user expects: it was deleted, or the
    project's folder was moved or copied and the artifacts would still go to the old one."""
    found = stored_experiment(uri, name)
    if found is None:
        return
    if found.trashed:
        raise StoreError(
            f"the experiment {name} of {uri} is in MLflow's trash, and its name cannot be given again; restore it with "
            f"its runs, `MLFLOW_TRACKING_URI={shlex.quote(uri)} {shlex.quote(sys.executable)} -m mlflow experiments "
            f"restore --experiment-id {found.id}`, or choose another name in the file"
        )
    place = _moved_from(found.location, uri)
    if place is not None:
        raise StoreError(
            f"the project was moved or copied: the store is {uri}, but artifacts of the experiment {name} are kept in "
            f"{place}, where its folder was before. Nothing was begun. Run `lqray relocate --uri {shlex.quote(uri)}`, "
            f"and those of all its experiments are looked for, and kept, in {_artifacts(uri)}; or move the project back"
        )


def relocate(uri: str) -> list[str]:
    """Correct, in a sqlite store whose project was moved or copied, where its artifacts are; the names of the
    experiments that were corrected. uri: absolute. No file is moved. Raises StoreError where the artifacts were left
    behind, or the store is no sqlite file of a known version."""
    target = _artifacts(uri)
    if target is None:
        raise StoreError(
            f"found the store {uri}; allowed: a sqlite file, beside which its artifacts are kept; a server itself says "
            "where artifacts are"
        )
    with tables.connected(uri) as connection:
        if connection is None:
            raise StoreError(f"the tables of {uri} are of a version of MLflow that this lqray cannot correct")
        moved = [
            (one, place)
            for one in (StoredExperiment(*row) for row in tables.experiments_named(connection))
            if (place := _moved_from(one.location, uri)) is not None
        ]
        for one, place in moved:
            if place.exists() and not (target / place.name).exists():
                raise StoreError(
                    f"the artifacts of the experiment {one.name} are still in {place}: nothing was changed. Move or "
                    f"copy that folder to {target / place.name} first, then run the same command again"
                )
        for one, place in moved:
            tables.relocate_experiment(connection, one.id, one.location, (target / place.name).as_uri())
        connection.commit()
    return [one.name for one, _ in moved]


def _artifacts(uri: str) -> Path | None:
    folder = store_folder(uri)
    return folder / ARTIFACTS if folder else None


def _moved_from(location: str, uri: str) -> Path | None:
    """The folder of an experiment's artifacts, where lqray chose it and the store is no longer beside it."""
    expected, parsed = _artifacts(uri), urlparse(location)
    if expected is None or parsed.scheme not in ("", "file"):
        return None
    place = Path(url2pathname(parsed.path) if parsed.scheme else location)
    if place.parent.name != ARTIFACTS or place.parent == expected:
        return None
    try:
        return None if place.parent.samefile(expected) else place
    except OSError:
        return place
