"""What a worker's reporter is given: a task, and a link that keeps what is sent."""

from pathlib import Path

from lqray.experiment.options.resources import Resources
from lqray.experiment.options.storage import Storage
from lqray.orchestration.queue.stop_rules import parse_stop_rule
from lqray.orchestration.worker.task import Ack, WorkerTask


class Link:
    """Keeps every point in `sent`, and acknowledges what `answer` says."""

    def __init__(self):
        self.sent, self.answer = [], Ack()

    def send(self, update):
        self.sent += update.points

    def acknowledged(self):
        return self.answer

    def close(self): ...


def task(folder: Path, *rules: str) -> WorkerTask:
    """A trial's task in a folder, with these stop rules."""
    chosen = tuple(map(parse_stop_rule, rules))
    return WorkerTask("t", "n", {}, Resources(), Storage(), str(folder), "r", 1, "gloo", "c", chosen)
