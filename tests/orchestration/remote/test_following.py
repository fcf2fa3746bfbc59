"""Following a job through losses of the connection, with a server of which everything is said here."""

import platform
from types import SimpleNamespace

import pytest

from lqray.orchestration.code_version import code_version
from lqray.orchestration.provenance import running_code
from lqray.orchestration.remote import following
from lqray.orchestration.remote.following import Following
from lqray.orchestration.remote.job_head import JobHead
from lqray.orchestration.remote.job_server import SubmissionError


class Server:
    """A job server that does, one after the other, what `script` says: text of the log, "cut", "down", or how the job
    ended."""

    def __init__(self, *script, message=""):
        self.script, self.message, self.log, self.status = list(script), message, "", "RUNNING"

    def connect(self):
        if self.script[:1] == ["down"]:
            self.script.pop(0)
            raise ConnectionError("nobody answers")
        return self, "http://head:8265"

    def get_job_status(self, submission_id):
        if self.status == "404":
            raise RuntimeError(f"Request failed with status code 404: Job {submission_id} does not exist.")
        return SimpleNamespace(value=self.status, is_terminal=lambda: self.status != "RUNNING")

    def get_job_info(self, submission_id):
        return SimpleNamespace(message=self.message)

    async def tail_job_logs(self, submission_id):
        if self.log:
            yield self.log
        while self.script:
            event = self.script.pop(0)
            if event == "cut":
                raise ConnectionError("cut")
            if event in ("SUCCEEDED", "FAILED", "STOPPED", "404"):
                self.status = event
                return
            self.log += event
            yield event


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(following, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(following, "_LAST_DELAY", 0.002)


def followed(server, show=True):
    said, shown = [], []
    way = Following("far-1", server.connect, said.append, shown.append if show else None)
    return lambda: way.outcome(server, "http://head:8265"), said, shown


def test_every_loss_is_said_however_soon_it_follows_another():
    server = Server("a", "cut", "down", "b", "cut", "cut", "c", "SUCCEEDED")
    outcome, said, shown = followed(server)
    assert outcome() == "SUCCEEDED"
    assert "".join(shown) == "abc"
    assert [one.split(" the ")[0].split(" to ")[0] for one in said] == ["lost", "connected"] * 3


def test_a_cluster_that_was_started_anew_is_told_from_one_that_is_away():
    outcome, _, _ = followed(Server("a", "cut", "404"))
    with pytest.raises(SubmissionError, match="started anew.*submit it again"):
        outcome()


def test_a_server_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(following, "PATIENCE", 0.05)
    outcome, said, _ = followed(Server("cut", *["down"] * 10**5))
    with pytest.raises(SubmissionError, match="the job goes on if its cluster does"):
        outcome()
    assert len(said) == 1


MESSAGE = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nthe log"


@pytest.mark.parametrize("show", [True, False])
def test_a_failed_jobs_log_is_shown_once(show):
    outcome, said, shown = followed(Server("the log", "FAILED", message=MESSAGE), show)
    server_said = "Job entrypoint command failed with exit code 1"
    if not show:
        server = Server("FAILED", message=MESSAGE)
        server.status = "FAILED"
        outcome, said, shown = followed(server, show)
    assert outcome() == "FAILED"
    assert (shown, said) == ((["the log"], [server_said]) if show else ([], [MESSAGE]))


def test_a_job_that_failed_while_its_log_cannot_be_read_says_why(monkeypatch):
    """As behind a proxy without WebSockets, or after a cut in which the job ended."""
    monkeypatch.setattr(following, "_WITHOUT_LOG", 0.02)
    server = Server(*["cut"] * 10**5, message=MESSAGE)
    server.status = "FAILED"
    outcome, said, shown = followed(server)
    assert outcome() == "FAILED"
    assert said[-1] == MESSAGE
    assert shown == []


def test_a_job_that_ended_during_a_cut_has_its_log_shown():
    server = Server("a", "cut", "down", "b", "FAILED", message=MESSAGE)
    outcome, said, shown = followed(server)
    assert outcome() == "FAILED"
    assert "".join(shown) == "ab"
    assert said[-1] == "Job entrypoint command failed with exit code 1"


def test_an_early_warning_is_no_reason_and_a_module_that_was_not_sent_is_named():
    warning = MESSAGE.replace("the log", "UserWarning: No module named 'triton'\nlqray: the loss is NaN\n")
    outcome, said, _ = followed(Server("x", "FAILED", message=warning))
    assert outcome() == "FAILED"
    assert "triton" not in said[0]
    own = MESSAGE.replace("the log", "ModuleNotFoundError: No module named 'lqray.quantization.mine'\n")
    outcome, said, _ = followed(Server("x", "FAILED", message=own))
    assert outcome() == "FAILED"
    assert "lqray.quantization.mine was not sent: does .gitignore name it?" in said[0]


@pytest.mark.parametrize(
    "log",
    [
        "ModuleNotFoundError: No module named 'mlflow'",
        "/usr/bin/python: No module named lqray",
        "Error: lqray needs click, which /usr/bin/python3 does not have; install",
    ],
)
def test_a_machine_that_lacks_something_is_told_how_to_get_it(log):
    outcome, said, _ = followed(Server(log, "FAILED", message=MESSAGE.replace("the log", log)))
    assert outcome() == "FAILED"
    (why,) = said
    assert f"has no {'mlflow' if 'mlflow' in log else 'click' if 'click' in log else 'lqray'}" in why
    assert "ray up cluster.yaml" in why


@pytest.mark.parametrize(
    ("sent", "remark", "other"),
    [
        (code_version(), None, False),
        ("0" * 12, "was sent with it", True),
        ("", None, False),
        (None, None, False),
    ],
)
def test_what_the_job_says_it_is_is_compared_with_what_was_sent(sent, remark, other):
    head = JobHead(sent, {})
    log = f"INFO job_manager.py: setting up\n{running_code()}\nfar: 1 to run, recorded in http://server:5000\n"
    log += "...\nother: 2 to run, recorded in http://other\n"
    said = [one for character in log for one in head.heard(character)]
    assert head.other_code is other
    assert head.stores == {"far": "http://server:5000", "other": "http://other"}
    assert head.not_said("SUCCEEDED") is None
    assert said == [] if remark is None else remark in said[0]


def test_an_older_lqray_that_says_nothing_is_noticed():
    head = JobHead("0" * 12, {"far": "sqlite:////x.db"})
    assert head.not_said("STOPPED") is None  # before anything was heard
    assert head.heard("far: 1 to run, recorded in http://server:5000\n") == []
    assert head.stores == {"far": "sqlite:////x.db"}
    assert "does not say which lqray" in head.not_said("SUCCEEDED")
    own = JobHead("", {})
    assert "the cluster's own" in own.heard(running_code().replace(code_version(), "0" * 12) + "\n")[0]
    other = JobHead(code_version(), {})
    (remark,) = other.heard(running_code().replace(f"Python {platform.python_version()}", "Python 3.99.1") + "\n")
    assert "the cluster has Python 3.99.1" in remark
