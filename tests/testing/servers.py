"""Servers of HTTP that answer as they are told, where an MLflow server is expected."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str, str]
"""Status, content type, body."""

PAGE: Answer = (200, "text/html", "<html>Please log in to the hotel's network</html>")
EXPERIMENT = {"experiment_id": "7", "name": "known", "lifecycle_stage": "active", "artifact_location": "/nowhere"}
EXPERIMENTS: Answer = (200, "application/json", json.dumps({"experiments": [EXPERIMENT]}))


def failing(status: int, code: str = "INTERNAL_ERROR") -> Answer:
    """In MLflow's own words."""
    return status, "application/json", json.dumps({"error_code": code, "message": "the server's own words"})


@contextmanager
def answering(answer: Callable[[int], Answer]) -> Iterator[str]:
    """The address of a server. answer: of the n-th request, from 0."""
    lock, count = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            with lock:
                number, count[0] = count[0], count[0] + 1
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, body = answer(number)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
