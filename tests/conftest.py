"""Settings of the whole suite: deterministic hypothesis, and a Ray that never meets another one."""

import os

os.environ["RAY_ADDRESS"] = "local"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  by default 15: beside others, workers starve
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # its client asks again and again for what no test wants to fetch

import pytest
from hypothesis import settings

from lqray.orchestration import signals
from lqray.orchestration.recording import metrics
from tests.testing import copies, no_processes

settings.register_profile("lqray", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lqray")


_LEFT_BEHIND = ("MLFLOW_TRACKING_URI", "PYTHONSAFEPATH")


@pytest.fixture(autouse=True)
def _no_environment_of_another_test():
    """mlflow.set_tracking_uri sets the environment, too, of which lqray takes its default store; the command line's
    function says where the processes that it starts look for modules."""
    before = {name: os.environ.get(name) for name in _LEFT_BEHIND}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True, scope="session")
def _deliver_metrics_in_copies():
    """A launch within a test's own process does not wait until another one has imported MLflow."""
    metrics._processes = copies.CONTEXT


@pytest.fixture(autouse=True)
def _no_signal_of_another_test():
    """A launch remembers the signals it has heard until its process ends; a test that sends itself one is not one."""
    before = signals._state
    yield
    signals._state = before


def pytest_addoption(parser):
    parser.addoption("--no-processes", action="store_true", help="skip what starts a process, at that moment")


def pytest_collection_finish(session):
    if session.config.getoption("--no-processes"):
        no_processes.forbid()


_ONLY_WITH = {
    "slow": ("LQRAY_TEST_SLOW", "takes minutes, and others of its kind run: LQRAY_TEST_SLOW=1 runs it, too"),
    "hosts": ("LQRAY_TEST_HOSTS", "makes hosts of namespaces, for minutes: make test-hosts, or LQRAY_TEST_HOSTS=1"),
}


def pytest_collection_modifyitems(items):
    """Tests that are marked slow, or hosts, run where somebody has the time."""
    for mark, (variable, reason) in _ONLY_WITH.items():
        if os.environ.get(variable) == "1":
            continue
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
