"""Uploads to a job server over a network that is slow, stands still, or breaks."""

import hashlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from lqray.orchestration.launchers.ray.cluster import ClusterError
from lqray.orchestration.remote import job_server

SIZE = 16_000_000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/api/version":
            return self.answer(
                200, b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}'
            )
        return self.answer(200 if self.path in self.server.kept else 404, b"")

    def do_PUT(self):
        self.server.puts += 1
        script = self.server.script.pop(0) if self.server.script else ""
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            if script == "break" and left < SIZE:
                return self.hang_up()
            if script == "stall" and left < SIZE:
                self.server.released.wait(60)
                return self.hang_up()
            piece = self.rfile.read(min(left, 100_000))
            digest.update(piece)
            left -= len(piece)
            if script == "slow":
                time.sleep(0.05)
        self.server.kept[self.path] = digest.hexdigest()
        return self.hang_up() if script == "silent" else self.answer(200, b"")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.kept, self.puts = list(script), {}, 0
        self.released = threading.Event()

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # what is on its way is little
        super().server_bind()


@pytest.fixture
def package(tmp_path):
    file = tmp_path / "tree.zip"
    file.write_bytes(bytes(range(250)) * (SIZE // 250))
    return file


@pytest.fixture
def upload(package, monkeypatch):
    """Runs an upload against a server that follows a script."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setattr(job_server, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(job_server, "_ANSWER_SECONDS", 20.0)
    servers = []

    def run(*script, away=0):
        calls = []

        def find():
            calls.append(None)
            if 1 < len(calls) <= 1 + away:
                raise ClusterError("no tunnel: ssh does not answer")
            return f"http://127.0.0.1:{server.server_address[1]}"

        server = Server(*script)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said, sent = [], []
        client = job_server.connect(find, said.append, lambda *progress: sent.append(progress))
        monkeypatch.setattr(job_server, "STALLED_SECONDS", 3.0)
        client._upload_package_if_needed(str(package), include_gitignore=True, is_file=True)
        return server, said, sent

    yield run
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def test_an_upload_may_take_any_time_as_long_as_something_moves(upload, package):
    begun = time.monotonic()
    server, said, sent = upload("slow")
    assert time.monotonic() - begun > 2 * job_server.STALLED_SECONDS
    assert list(server.kept.values()) == [hashlib.sha256(package.read_bytes()).hexdigest()]
    assert (server.puts, said) == (1, [])
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == ((0, SIZE), (SIZE, SIZE))


@pytest.mark.parametrize("script", ["break", "stall"])
def test_an_upload_that_breaks_off_is_made_again(upload, package, script):
    server, (said,), sent = upload(script)
    assert "the upload broke off after" in said
    assert "of 16.0 MB" in said
    assert server.puts == 2
    assert list(server.kept.values()) == [hashlib.sha256(package.read_bytes()).hexdigest()]
    assert sent[-1] == (SIZE, SIZE)


def test_what_arrived_is_not_sent_again_where_the_answer_was_lost(upload):
    server, said, _ = upload("silent")
    assert (server.puts, len(said)) == (1, 1)


def test_a_tunnel_that_cannot_be_made_again_at_once_is_waited_for(upload):
    server, said, _ = upload("break", away=1)
    assert (server.puts, len(server.kept), len(said)) == (2, 1, 1)


def test_a_network_that_never_holds_is_given_up(upload):
    with pytest.raises(requests.ConnectionError):
        upload(*["break"] * 10)
