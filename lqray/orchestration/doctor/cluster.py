"""What `lqray doctor --cluster` looks at: on every node of a Ray cluster, is everything there that a sweep needs.

A `Probe`, an actor that takes no CPU, looks around on each node; what needs two nodes, links and a shared folder, is
asked from pairs of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lqray.experiment.foreign import rich_text
from lqray.experiment.options.data import DataOptions
from lqray.experiment.secrets import masked
from lqray.orchestration.code_version import code_version
from lqray.orchestration.doctor.local import Finding
from lqray.orchestration.doctor.probe import Probe, Wanted, package_versions

_PATIENCE = 60.0
_CLOCK_SECONDS = 1.0
CHECKS = ("lqray", "packages", "operators", "GPU", "dataset", "disk", "storage", "MLflow", "clock", "link")
"""In the order in which they are shown."""


@dataclass
class NodeReport:
    """A node, by its address and id, and what was found there."""

    address: str
    node_id: str
    head: bool
    findings: list[Finding] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.address} (head)" if self.head else self.address


def examine_cluster(storage: str, store: str, datasets: Sequence[DataOptions]) -> list[NodeReport]:
    """What is found on every node that lives. storage, store: absolute, as for a sweep. Within `ray_cluster`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [
        NodeReport(node["NodeManagerAddress"], node["NodeID"], "node:__internal_head__" in node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    nodes.sort(key=lambda one: (not one.head, one.address))
    remote = ray.remote(num_cpus=0, max_concurrency=4)(Probe)
    probes = {
        one.node_id: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(one.node_id, soft=False)
        ).remote()
        for one in nodes
    }
    try:
        wanted = Wanted(code_version(), package_versions(), storage, store, tuple(datasets))
        answering: list[NodeReport] = []
        said = {node: probe.examine.remote(wanted) for node, probe in probes.items()}
        for one in nodes:
            findings, error = _wait(said[one.node_id])
            one.findings += findings if findings is not None else [_unusable(error)]
            if findings is not None:
                answering.append(one)
        _storage(answering, probes, storage)
        _clocks(answering, probes)
        _links(answering, probes)
    finally:
        for probe in probes.values():
            ray.kill(probe)
    for one in nodes:
        one.findings.sort(key=lambda finding: CHECKS.index(finding.what))
    return nodes


_SILENT = "no answer"


def _unusable(error: str) -> Finding:
    if error == _SILENT:
        remedy = f"it did not answer for {_PATIENCE:g} s: look at `ray status`"
    else:  # without lqray, or with an older one
        remedy = "install there the lqray that is here, with its requirements.lock"
    return Finding("lqray", "broken", error, remedy)


def _ask(call: Any, *arguments: Any) -> tuple[Any, str]:
    """(answer, "") or (None, what went wrong)."""
    return _wait(call.remote(*arguments))


def _wait(reference: Any) -> tuple[Any, str]:
    import ray

    try:
        return ray.get(reference, timeout=_PATIENCE), ""
    except ray.exceptions.GetTimeoutError:
        return None, _SILENT
    except Exception as error:  # of the node, of what it was asked, or of Ray
        return None, (masked(str(error)).strip() or type(error).__name__).splitlines()[-1][:300]


def _storage(nodes: Sequence[NodeReport], probes: Mapping[str, Any], storage: str) -> None:
    """Each node writes a file; all the others must see it."""
    names: dict[str, str] = {}
    for one in nodes:
        name, error = _ask(probes[one.node_id].leave_mark, storage, one.node_id[:12])
        if error:
            remedy = "choose with storage.folder what every node can write to, and look at credentials there"
            one.findings.append(Finding("storage", "broken", f"{storage}: {error}", remedy))
        else:
            names[one.node_id] = name
    for one in nodes:
        if one.node_id not in names:
            continue
        unseen, error = _ask(probes[one.node_id].missing_marks, storage, list(names.values()))
        if error or unseen:
            of = ", ".join(other.address for other in nodes if names.get(other.node_id) in (unseen or []))
            found = error or f"{storage} is another folder here: it lacks what {of} wrote"
            remedy = "storage.folder must be shared by all nodes: a network file system, or s3://BUCKET/PREFIX"
            one.findings.append(Finding("storage", "broken", found, remedy))
        else:
            one.findings.append(Finding("storage", "ok", f"{storage}, the same on all nodes"))
    for one in nodes:
        if one.node_id in names:
            _ask(probes[one.node_id].remove_mark, storage, names[one.node_id])


def _clocks(nodes: Sequence[NodeReport], probes: Mapping[str, Any]) -> None:
    """Against the head's, each by the quickest of five questions: the answer was given halfway, give or take half."""
    offsets: dict[str, tuple[float, float]] = {}
    for one in nodes:
        for _ in range(5):
            before = time.time()
            there, error = _ask(probes[one.node_id].clock)
            after = time.time()
            if error:
                break
            sample = (there - (before + after) / 2, (after - before) / 2)
            offsets[one.node_id] = min(offsets.get(one.node_id, sample), sample, key=lambda pair: pair[1])
    head = next((offsets[one.node_id] for one in nodes if one.head and one.node_id in offsets), (0.0, 0.0))
    for one in nodes:
        if one.node_id not in offsets:
            continue
        offset, doubt = (offsets[one.node_id][0] - head[0], offsets[one.node_id][1] + head[1])
        state: Literal["ok", "slow"] = "ok" if one.head or abs(offset) - doubt < _CLOCK_SECONDS else "slow"
        found = "the head's" if one.head else f"{offset * 1e3:+.0f} ms, give or take {doubt * 1e3:.0f}"
        remedy = "" if state == "ok" else "times of metrics and logs will not compare: run NTP there"
        one.findings.append(Finding("clock", state, found, remedy))


def _links(nodes: Sequence[NodeReport], probes: Mapping[str, Any]) -> None:
    """Around a ring, one link at a time: each node sends to the next for a second."""
    if len(nodes) < 2:
        return
    for one, following in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        port, error = _ask(probes[following.node_id].listen, following.address)
        if not error:
            measured, error = _ask(probes[one.node_id].send, following.address, port)
        if error:
            remedy = f"let nodes reach each other on all ports; {following.address} was not reached from here"
            one.findings.append(Finding("link", "broken", error, remedy))
            continue
        megabits, milliseconds = measured
        found = f"{megabits:.0f} Mbit/s, {milliseconds:.2f} ms there and back, to {following.address}"
        one.findings.append(Finding("link", "ok", found))


def broken(reports: Iterable[NodeReport]) -> bool:
    """Whether a sweep would fail somewhere."""
    return any(finding.state == "broken" for one in reports for finding in one.findings)


def cluster_table(reports: Sequence[NodeReport]) -> Any:
    """Nodes by checks, as a rich table."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "slow": "yellow", "broken": "bold red"}
    shown = [check for check in CHECKS if any(finding.what == check for one in reports for finding in one.findings)]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("node", *shown):
        table.add_column(title, no_wrap=True)
    for one in reports:
        worst = dict.fromkeys(shown, "")
        for finding in one.findings:
            states = ("", "ok", "slow", "broken")
            worst[finding.what] = max(worst[finding.what], finding.state, key=states.index)
        cells = [
            Text(state.upper() if state == "broken" else state or "-", styles.get(state, ""))
            for state in worst.values()
        ]
        table.add_row(rich_text(one.name), *cells)
    return table


def details(reports: Sequence[NodeReport]) -> Iterator[str]:
    """A line for everything found, once where nodes agree, and a remedy below what is not ok."""
    agreeing: dict[tuple[int, Finding], list[str]] = {}
    for one in reports:
        for finding in one.findings:
            agreeing.setdefault((CHECKS.index(finding.what), finding), []).append(one.address)
    marks = {"ok": "ok    ", "slow": "slow  ", "broken": "BROKEN"}
    for (_, finding), addresses in sorted(agreeing.items(), key=lambda item: item[0][0]):
        where = "all nodes" if len(addresses) == len(reports) > 1 else ", ".join(addresses)
        yield f"{marks[finding.state]}  {finding.what:10}  {where}: {masked(finding.found)}"
        if finding.remedy:
            yield f"{'':20}remedy: {finding.remedy}"
