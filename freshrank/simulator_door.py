"""The simulator's door for changes: `POST /control` beside its `/metrics`.

Anybody who reaches the port may use it, so it is there only where `monitor.controls` is on, and refuses what a web page
of another origin could send: browsers name the origin of a POST, and send our header elsewhere only if allowed to.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

import msgspec

from sim.control import SimChange

PATH = "/control"
CONTROL_HEADER = "X-Freshrank-Control"
"""Whoever changes something sends this header, with any value."""
MAX_BODY_BYTES = 4_096


def with_control(app: WSGIApplication, change: Callable[[SimChange], None]) -> WSGIApplication:
    """Returns a WSGI app that answers `/control` itself; else it is `app`."""

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return app(environ, start_response)
        status, body = _control(environ, change)
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [msgspec.json.encode(body)]

    return answer


def _control(environ: dict[str, Any], change: Callable[[SimChange], None]) -> tuple[HTTPStatus, dict[str, str]]:
    if environ["REQUEST_METHOD"] != "POST":
        return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "method: only POST is allowed"}
    if "HTTP_ORIGIN" in environ or "HTTP_X_FRESHRANK_CONTROL" not in environ:
        return HTTPStatus.FORBIDDEN, {"error": f"only the monitor may: header {CONTROL_HEADER}, and no Origin"}
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"body: at most {MAX_BODY_BYTES} bytes"}
    try:
        change(msgspec.json.decode(environ["wsgi.input"].read(int(length)), type=SimChange))
    except ValueError as error:  # what msgspec raises is one
        return HTTPStatus.BAD_REQUEST, {"error": str(error)}
    return HTTPStatus.OK, {"done": "from now on"}
