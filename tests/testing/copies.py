"""Processes that begin as copies of one that has imported everything: to import it again takes seconds of a core."""

from __future__ import annotations

import os
from multiprocessing import context

IMPORTED = [
    "torch",
    "torch._dynamo",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.special",
    "lqray.training.worker",
    "lqray.communication",
    "lqray.orchestration.recording.metric_writer",
    "mlflow.store.tracking.sqlalchemy_store",
    "pytest",
    "hypothesis",
]


class _Copy(context.ForkServerProcess):
    """Of the environment that its maker has when it is started."""

    def start(self) -> None:
        CONTEXT.set_forkserver_preload(IMPORTED)
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Copies(context.ForkServerContext):
    Process = _Copy  # type: ignore[assignment]


CONTEXT = _Copies()
