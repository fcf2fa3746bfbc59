"""What a spot machine hears from the metadata servers of its cloud; these are stand-ins."""

import importlib.util
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "deploy/drain_on_notice.py"
AWS_NOTICE = "/latest/meta-data/spot/instance-action"
GOOGLE_NOTICE = "/computeMetadata/v1/instance/preempted"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("drain_on_notice", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server():
    """(its address, what it says by path); of AWS what has the token alone, of Google what names the flavour."""
    said = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = (
                self.headers.get("X-aws-ec2-metadata-token") == "t" or self.headers.get("Metadata-Flavor") == "Google"
            )
            self.answer(said.get(self.path) if allowed else None)

        def do_PUT(self):
            self.answer("t" if self.path == "/latest/api/token" else None)

        def answer(self, text):
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_):
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", said
    served.shutdown()
    served.server_close()


NOBODY = "http://127.0.0.1:9"


def test_the_notice_of_aws_says_when(script, server):
    address, said = server
    assert script.notice(address, NOBODY) is None
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
    said[AWS_NOTICE] = f'{{"action": "terminate", "time": "{when}"}}'
    assert 110 < script.notice(address, NOBODY) <= 120


def test_the_notice_of_google_is_half_a_minute(script, server):
    address, said = server
    said[GOOGLE_NOTICE] = "FALSE"
    assert script.notice(NOBODY, address) is None
    said[GOOGLE_NOTICE] = "TRUE"
    assert script.notice(NOBODY, address) == 30


def test_elsewhere_nobody_answers(script):
    with pytest.raises(OSError, match="refused"):
        script.notice(NOBODY, NOBODY)


def test_it_waits_for_the_notice_and_drains_once(script, monkeypatch, capsys):
    answers = [None, OSError("down for a moment"), 100.0]
    drained = []

    def notice():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(script, "notice", notice)
    monkeypatch.setattr(script, "drain", lambda seconds: drained.append(seconds) or 0)
    monkeypatch.setattr(script, "POLL_SECONDS", 0.0)
    monkeypatch.setattr("sys.argv", [str(FILE)])
    assert script.main() == 0
    assert drained == [100.0]
    assert "gone in 100 s" in capsys.readouterr().out
