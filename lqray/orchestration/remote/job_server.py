"""A cluster's job server, over a network that may be slow, and may break."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lqray.orchestration.launchers.ray.access import offer_token
from lqray.orchestration.launchers.ray.cluster import ClusterError

STALLED_SECONDS = 60.0
"""A request, or an upload, of which nothing moves for so long has failed; one that moves may take any time."""
_ANSWER_SECONDS = 300.0
"""An upload's answer comes after megabytes that wait in this machine's buffers."""
_UPLOADS = 5
PATIENCE = 600.0
"""Seconds that a network may be away."""
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 15.0
_PIECE = 2**16

Sent = Callable[[int, int], None]
"""Told of an upload's bytes that were sent so far, and of all."""


class SubmissionError(ConnectionError):
    """The cluster takes no job, or cannot be asked how it stands."""


def address_of(address: str | None) -> str:
    """URL of a cluster's job server: `address`, or what Ray's own commands would ask, or the usual port here."""
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if not address and not found.startswith(("http://", "https://")):
        found = "http://127.0.0.1:8265"
    return (found if "://" in found else f"http://{found}").rstrip("/")


def connect(find: Callable[[], str], say: Callable[[str], None], sent: Sent | None = None) -> Any:
    """Ray's client for jobs, at the address that `find` says now; its uploads are told to `sent`, and made again where
    they break off. Raises what Ray's client raises, and what `find` does."""
    address = find()
    offer_token()
    # It has the last word on the address, and so has RAY_ADDRESS, which is where trials run, without it.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.dashboard.modules.job.common import uri_to_http_components
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Whose requests end: Ray's wait for ever for a server that has gone without a word. And whose uploads do not:
        Ray's give the network one time-out for all that is sent."""

        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": STALLED_SECONDS, **options})

        def _upload_package(self, package_uri: str, package_path: str, *_: Any, **__: Any) -> None:
            protocol, name = uri_to_http_components(package_uri)

            def put(body: _Body) -> None:
                answer = self._do_request(
                    *("PUT", f"/api/packages/{protocol}/{name}"),
                    data=body,
                    timeout=(STALLED_SECONDS, _ANSWER_SECONDS),  # of each piece; then, of the answer
                )
                if answer.status_code != 200:
                    self._raise_error(answer)

            def arrived() -> bool:
                self._address = find()
                return bool(self._package_exists(package_uri))

            _uploaded(Path(package_path), put, arrived, say, sent)

    return Client(address)


def _uploaded(
    package: Path,
    put: Callable[[_Body], None],
    arrived: Callable[[], bool],
    say: Callable[[str], None],
    sent: Sent | None,
) -> None:
    """Put a package, and again where that breaks off, unless it has arrived and only the answer was lost. Raises what
    `put` raises, after the last time, or when the network was away for PATIENCE seconds."""
    pause, until = _FIRST_PAUSE, time.monotonic() + PATIENCE
    begun, away = 0, False
    while True:
        with package.open("rb") as file:
            body = _Body(file, sent)
            try:
                put(body)
                return
            except Exception as error:
                if time.monotonic() > until or not may_pass(error):
                    raise
                if body.sent:  # the network was there: it has as long again to come back
                    until = time.monotonic() + PATIENCE
                    begun += 1
                if begun > _UPLOADS:
                    raise
                if body.sent or not away:
                    say(
                        f"the upload broke off after {body.sent / 1e6:.1f} of {len(body) / 1e6:.1f} MB "
                        f"({first_line(error)}); trying again"
                    )
                away = not body.sent
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)
        try:
            if arrived():
                return
        except Exception as error:
            if not may_pass(error):
                raise


class _Body:
    """A file as `requests` sends it in pieces, each of which has the time-out for itself."""

    def __init__(self, file: IO[bytes], told: Sent | None) -> None:
        self._file, self._told, self.sent = file, told, 0
        self._size = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        """The next bytes: those before are sent, or wait in the system's buffer."""
        if self._told:
            self._told(self.sent, self._size)
        piece = self._file.read(min(size, _PIECE) if size >= 0 else _PIECE)
        self.sent += len(piece)
        return piece


def of_versions(client: Any) -> str | None:
    """A remark where the cluster has another Ray than this machine."""
    import ray

    there, here = str(client._server_ray_version), ray.__version__
    if there.split(".")[:2] == here.split(".")[:2]:
        return None
    return f"the cluster has Ray {there}, and this machine Ray {here}"


def of_the_server(error: Exception) -> bool:
    """Whether it says something of the server, or of the way to it."""
    from ray.exceptions import AuthenticationError

    return isinstance(error, RuntimeError | AuthenticationError) or may_pass(error)


def may_pass(error: Exception) -> bool:
    """Whether it comes from a connection or a server that may be there again, as it was, later."""
    import aiohttp
    import requests

    if isinstance(error, RuntimeError):
        status = re.search(r"status code (\d+)", str(error))
        return "WebSocket" in str(error) or (status is not None and status.group(1).startswith("5"))
    return isinstance(error, ConnectionError | TimeoutError | aiohttp.ClientError | requests.RequestException)


def why(address: str, error: Exception) -> str:
    """What an error of the job server's means, and what to do."""
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError):
        return (
            f"{address} does not let you in: {first_line(error)}\n"
            f"Found RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '(unset)')}; the cluster wants its own token in "
            "RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token."
        )
    if isinstance(error, RuntimeError):
        return f"{address} refuses: {error}"
    return (
        f"no job server answers at {address or 'that address'} ({first_line(error)}). Give --address "
        "http://HOST:8265 of the cluster's dashboard, or --cluster cluster.yaml, which makes an SSH tunnel to it."
    )


def reached(address: Callable[[], str], call: Callable[[], Any]) -> Any:
    """What the call returns. Raises SubmissionError for what is wrong with the server or the way to it."""
    try:
        return call()
    except Exception as error:
        if isinstance(error, ClusterError | SubmissionError) or not of_the_server(error):
            raise
        raise SubmissionError(why(address(), error)) from error


def first_line(error: Exception) -> str:
    """Of an error's text, or what kind it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
