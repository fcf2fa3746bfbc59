"""What one `lqray` process wishes of another's launch, passed through tags of the MLflow experiment."""

from __future__ import annotations

import fnmatch
import json
import secrets
from collections.abc import Callable, Iterator

from lqray.experiment.grid import NamedTrial
from lqray.experiment.plan import PLAN, plan_tags, published_plan
from lqray.orchestration.store_access import client_of, patiently
from lqray.orchestration.tracking import Launch

_STOP = "lqray.stop"


def matching(pattern: str) -> Callable[[NamedTrial], bool]:
    """Trials whose name a shell pattern matches, or whose id begins with it."""
    return lambda named: (
        fnmatch.fnmatchcase(named.name, pattern) or (len(pattern) >= 4 and named.trial.id.startswith(pattern))
    )


def ask_to_stop(uri: str, experiment_id: str, pattern: str) -> None:
    """Ask every launch of the experiment to stop the trials that `pattern` matches."""
    wish = json.dumps({"id": secrets.token_hex(8), "pattern": pattern})
    patiently(lambda: client_of(uri).set_experiment_tag(experiment_id, _STOP, wish), 30.0)


def publish_plan(launch: Launch) -> None:
    """Tell older launches of the experiment what its file says now: what they have not begun and is no longer in it,
    they drop."""
    client = client_of(launch.uri)
    for key, value in plan_tags(launch.launch_id, launch.source).items():
        patiently(lambda key=key, value=value: client.set_experiment_tag(launch.experiment_id, key, value))  # type: ignore[misc]


class Wishes:
    """New wishes of others, as seen from one launch: those made before it began are not its own."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._client = client_of(launch.uri)
        tags = self._tags()
        self._stop, self._plan = tags.get(_STOP), tags.get(PLAN)
        self._seen = tags

    def stops(self) -> Iterator[tuple[Callable[[NamedTrial], bool], str]]:
        """(which trials, why), as they come. Reads the store."""
        self._seen = self._tags()
        wish = self._seen.get(_STOP)
        if wish and wish != self._stop:
            self._stop = wish
            pattern = json.loads(wish)["pattern"]
            yield matching(pattern), "lqray stop"

    def newer_plan(self) -> str | None:
        """The text of the experiment file that a newer launch uses, when there is one; as of the last `stops`."""
        plan = self._seen.get(PLAN)
        if plan is None or plan == self._plan:
            return None
        self._plan = plan
        found = published_plan(self._seen)
        return found[1] if found and found[0] != self._launch.launch_id else None

    def _tags(self) -> dict[str, str]:
        tags: dict[str, str] = self._client.get_experiment(self._launch.experiment_id).tags
        return tags
