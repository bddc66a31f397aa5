"""The ranking service as its users see it: ask for a slate, report what was done with it.

Blocking calls on the standard library's HTTP client, one kept-alive connection per calling thread. An asynchronous
client would be the usual choice; measured here, httpx takes 970 us of CPU per call, aiohttp 280, this one 120, and the
simulator shares its cores with what it drives.
"""

import http.client
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sim.exceptions import ServiceError, UnreachableError
from stream.schema import Feedback


class RankedItem(msgspec.Struct):
    """One item of the answer; further fields are ignored."""

    id: str


class RankAnswer(msgspec.Struct):
    """What `POST /v1/rank` answers, as far as a user cares."""

    request_id: str
    items: list[RankedItem]
    snapshot: int = 0
    degraded: list[str] = []
    explore: bool = False


class RankClient:
    """Calls a ranking service. May be shared by threads."""

    def __init__(self, base_url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> None:
        """Takes the service's address, e.g. `http://localhost:8620`, and what to send beside each body, as a token.

        Nothing is sent yet.

        Raises:
            ValueError: not an http(s) address.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: {base_url!r} is not allowed; http://HOST:PORT or https://HOST:PORT")
        self._connection_type = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []
        self._decoder = msgspec.json.Decoder(RankAnswer)

    def rank(self, request: dict[str, Any]) -> RankAnswer:
        """Returns the slate for a request.

        Raises:
            UnreachableError: no answer.
            ServiceError: another answer than a slate.
        """
        body = self._post("/v1/rank", msgspec.json.encode(request))
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise ServiceError(f"POST /v1/rank: not a slate: {error}") from error

    def send_feedback(self, feedback: list[Feedback]) -> None:
        """Reports actions.

        Raises:
            UnreachableError: no answer.
            ServiceError: the service did not accept them.
        """
        self._post("/v1/feedback", msgspec.json.encode(feedback))

    def close(self) -> None:
        """Closes all connections; no call may be running."""
        for connection in self._open:
            connection.close()

    def _post(self, path: str, body: bytes) -> bytes:
        connection = self._connection()
        is_kept_alive = connection.sock is not None
        try:
            try:
                status, answer = _exchange(connection, self._path + path, body, self._headers)
            except ConnectionError:
                # A server may close an idle connection at any time; that says nothing about a new one.
                if not is_kept_alive:
                    raise
                connection.close()
                status, answer = _exchange(connection, self._path + path, body, self._headers)
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # opened again by the next call
            raise UnreachableError(f"POST {path}: {type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise ServiceError(f"POST {path}: HTTP {status}: {answer[:300].decode(errors='replace')}")
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connection_type(self._host, self._port, timeout=self._timeout_s)
            self._local.connection = connection
            self._open.append(connection)
        return connection


def _exchange(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()
