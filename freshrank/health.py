"""Whether a process is well, asked over HTTP by what would start it again: its loop has turned lately.

The door answers from a thread of its own, so that a loop which hangs is told from one that is busy: an answer of
`/metrics` says nothing about it.
"""

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

PATH = "/healthz"
LIMIT_S = 120.0
"""Longest turn of a process that is well: for so long, too, a group of consumers lets a member be silent."""


class Heartbeat:
    """Notes the turns of a loop that asks `should_stop` at each, and tells when they have ceased."""

    def __init__(
        self,
        should_stop: Callable[[], bool],
        *,
        limit_s: float = LIMIT_S,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._should_stop = should_stop
        self._limit_s = limit_s
        self._elapsed_s = elapsed_s
        self._last_turn_s: float | None = None

    def should_stop(self) -> bool:
        """Returns what the function given returns, and notes that another turn has begun."""
        self._last_turn_s = self._elapsed_s()
        return self._should_stop()

    def problem(self) -> str | None:
        """Returns in one line what is wrong; None if the loop turns."""
        if self._last_turn_s is None:
            return "has not begun"
        still_s = self._elapsed_s() - self._last_turn_s
        return f"has stood still for {still_s:.0f} s" if still_s > self._limit_s else None


def with_health(app: WSGIApplication, problem: Callable[[], str | None]) -> WSGIApplication:
    """Returns a WSGI app that answers `/healthz` itself, with 200 or with 503 and the problem; else it is `app`."""

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return app(environ, start_response)
        found = problem()
        status = HTTPStatus.OK if found is None else HTTPStatus.SERVICE_UNAVAILABLE
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{found or 'ok'}\n".encode()]

    return answer
