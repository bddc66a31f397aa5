"""What a request passes before it is looked at: token, origin, rate, size, and whether there is room at all.

    token -> origin -> encoding -> rate -> body (size, time) -> room -> the application

Plain ASGI around an application. Whatever is turned away costs no more than its headers, but for a body that is too
large or too slow; each is counted by reason, and told in one line of JSON.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec

from ranker.tokens import CHALLENGES, Tokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]  # frameworks type the three each in their own way
Header = tuple[bytes, bytes]

Reason = Literal["token", "origin", "encoding", "rate", "size", "slow", "busy"]
"""Why a request was turned away."""
MAX_CLIENTS = 10_000
"""Clients whose rate is remembered; beyond that the one that asked longest ago is forgotten."""
LARGEST_BODIES = 16
"""How many bodies of the largest size may be in memory at once, those still arriving included."""
CLOSE: Header = (b"connection", b"close")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorConfig:
    """Who may come in without a token, and how much one client and all of them together may ask for."""

    allow_anonymous: bool = False
    """Whether the door may be open to all though it listens on more than the loopback address. Without API tokens
    (FRESHRANK_API_TOKENS) the process does not start otherwise."""
    max_requests_per_s: float = 0.0
    """Requests per second of one client: of one token or, without tokens, of one address. Those of one second may come
    at once. 0: no limit; otherwise at least 0.01."""
    max_in_progress: int = 64
    """Requests with a body that wait or are being answered; the next is refused with HTTP 503 at once. At least 1."""
    body_timeout_ms: int = 5_000
    """How long a client may take to send a body; at least 100."""

    def __post_init__(self) -> None:
        if self.max_requests_per_s != 0 and not 0.01 <= self.max_requests_per_s < math.inf:
            raise ValueError(f"max_requests_per_s: {self.max_requests_per_s} is not allowed; 0, or at least 0.01")
        for name, least in (("max_in_progress", 1), ("body_timeout_ms", 100)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


class RefusedError(Exception):
    """A request is turned away: status, reason, one line for the caller, further headers."""

    def __init__(self, status: HTTPStatus, reason: Reason, text: str, headers: Iterable[Header] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.headers = headers


class Door:
    """An application behind its door. One event loop."""

    def __init__(
        self,
        app: AsgiApp,
        config: DoorConfig,
        tokens: Tokens,
        *,
        max_body_bytes: int,
        turned_away: Counter[str],
        open_paths: Collection[str] = ("/v1/health",),
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the application and what guards it.

        Args:
            app: What answers.
            config: The limits.
            tokens: Who may come in; empty: everybody.
            max_body_bytes: Largest body.
            turned_away: Counts, by reason, the requests that were.
            open_paths: Need no token and have no limit, so that whoever watches over the process can always ask.
            elapsed_s: A clock that never goes back.
        """
        self._app = app
        self._config = config
        self._tokens = tokens
        self._max_body_bytes = max_body_bytes
        self._turned_away = turned_away
        self._open_paths = frozenset(open_paths)
        self._rate = Rate(config.max_requests_per_s, elapsed_s)
        self._in_progress = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or has the application answer it."""
        if scope["type"] != "http" or (scope["path"] in self._open_paths and scope["method"] in ("GET", "HEAD")):
            await self._app(scope, receive, send)
            return
        try:
            self._check_head(scope)
            if scope["method"] in ("GET", "HEAD"):
                await self._app(scope, receive, send)
                return
            await self._with_body(scope, receive, send)
        except RefusedError as error:
            self._turned_away[error.reason] += 1
            await _refuse(send, error)

    def _check_head(self, scope: Scope) -> None:
        head = _Head.of(scope["headers"])
        holder = None
        if self._tokens and (holder := self._tokens.holder(head.authorization)) is None:
            raise RefusedError(
                HTTPStatus.UNAUTHORIZED, "token", "Authorization: a valid API token is needed", CHALLENGES
            )
        # A browser adds the token by itself, and asks before it sends JSON but not before it sends text to a stranger.
        if head.origin is not None and head.origin.partition("://")[2] != head.host:
            raise RefusedError(HTTPStatus.FORBIDDEN, "origin", "Origin: only pages of this address may ask")
        if head.encoding not in (None, "identity"):
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "encoding", "Content-Encoding: is not allowed; send it as it is"
            )
        if head.length is not None and head.length.isdigit() and int(head.length[:19]) > self._max_body_bytes:
            raise self._too_large()
        client = holder if holder is not None else (scope.get("client") or ("",))[0]
        if wait_s := self._rate.wait_s(client):
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate",
                f"more than {self._config.max_requests_per_s:g} requests per second are not allowed",
                [(b"retry-after", str(math.ceil(wait_s)).encode())],
            )

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        try:
            if await self._read(receive, body):
                await self._in_turn(scope, _replay(bytes(body), receive), send)
        finally:
            self._held_bytes -= len(body)

    async def _read(self, receive: Receive, body: bytearray) -> bool:
        """Fills `body`, in time and within bounds; returns False if the client has gone before its end."""
        try:
            async with asyncio.timeout(self._config.body_timeout_ms / 1_000):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part = message.get("body", b"")
                    if len(body) + len(part) > self._max_body_bytes:
                        raise self._too_large()
                    if self._held_bytes + len(part) > LARGEST_BODIES * self._max_body_bytes:
                        raise _busy()
                    body += part
                    self._held_bytes += len(part)
                    if not message.get("more_body"):
                        return True
        except TimeoutError:
            text = f"body: was not there within {self._config.body_timeout_ms} ms"
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "slow", text, [CLOSE]) from None

    async def _in_turn(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._in_progress >= self._config.max_in_progress:
            raise _busy()
        self._in_progress += 1
        try:
            # One turn of the loop: all requests that have come are counted before the first of them is answered.
            # Otherwise none would ever wait here, but all of them behind each other and uncounted.
            await asyncio.sleep(0)
            await self._app(scope, receive, send)
        finally:
            self._in_progress -= 1

    def _too_large(self) -> RefusedError:
        text = f"body: more than {self._max_body_bytes} bytes are not allowed"
        return RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "size", text, [CLOSE])


def _busy() -> RefusedError:
    text = "too many requests at once: try again"
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", text, [(b"retry-after", b"1")])


class Rate:
    """Requests per second by client, as a token bucket that holds one second's worth (GCRA: one number per client).

    >>> rate = Rate(2.0, lambda: 100.0)
    >>> [rate.wait_s("a") for _ in range(4)], rate.wait_s("b")
    ([0.0, 0.0, 0.5, 0.5], 0.0)
    """

    def __init__(self, max_per_s: float, elapsed_s: Callable[[], float]) -> None:
        self._interval_s = 1 / max_per_s if max_per_s else 0.0
        self._burst_s = max(1.0, self._interval_s)
        self._elapsed_s = elapsed_s
        self._full_at_s: dict[object, float] = {}
        """When a client's bucket is full again; the client that asked last stands last."""

    def wait_s(self, client: object) -> float:
        """Returns 0 and takes note of the request, or how many seconds are left until one is allowed again."""
        if not self._interval_s:
            return 0.0
        now_s = self._elapsed_s()
        full_at_s = max(self._full_at_s.pop(client, now_s), now_s) + self._interval_s
        wait_s = full_at_s - now_s - self._burst_s
        if is_refused := wait_s > 1e-9:
            full_at_s -= self._interval_s
        self._full_at_s[client] = full_at_s
        if len(self._full_at_s) > MAX_CLIENTS:
            del self._full_at_s[next(iter(self._full_at_s))]
        return wait_s if is_refused else 0.0


class _Head(NamedTuple):
    """The headers that a door looks at."""

    authorization: str | None = None
    origin: str | None = None
    host: str | None = None
    encoding: str | None = None
    length: str | None = None

    @classmethod
    def of(cls, headers: Iterable[Header]) -> "_Head":
        return cls(**{_NAMES[name]: value.decode("latin-1") for name, value in headers if name in _NAMES})


_NAMES = {
    b"authorization": "authorization",
    b"origin": "origin",
    b"host": "host",
    b"content-encoding": "encoding",
    b"content-length": "length",
}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that hands out the body in one piece, then whatever comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(send: Send, error: RefusedError) -> None:
    content = msgspec.json.encode({"error": str(error)})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *error.headers,
    ]
    await send({"type": "http.response.start", "status": error.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": content})
