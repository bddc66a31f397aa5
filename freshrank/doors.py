"""The API tokens of a run: asked for by every door, sent by our own clients; from the environment and nowhere else.

The ranker and the page stand behind a `ranker.door.Door`; the small doors of the other processes (`/metrics`) behind
`with_tokens`. Without tokens a door that takes events from users listens on this machine alone, unless it is told to.
"""

import ipaddress
import logging
import os
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

import msgspec

from freshrank.health import PATH as HEALTH_PATH
from freshrank.strict import ConfigError
from ranker.tokens import CHALLENGES, Tokens, split

_logger = logging.getLogger(__name__)
VARIABLE = "FRESHRANK_API_TOKENS"


def api_tokens(environ: Mapping[str, str] = os.environ) -> Tokens:
    """Returns the tokens of the environment; none: doors are open.

    Raises:
        ConfigError: one cannot be used.
    """
    return Tokens(_tokens(environ))


def own_headers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns what our own clients send to come in: the first token, if there is one."""
    tokens = _tokens(environ)
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


def _tokens(environ: Mapping[str, str]) -> list[str]:
    try:
        return split(environ.get(VARIABLE, ""))
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from error


def door_tokens(section: str, host: str, *, allow_anonymous: bool, environ: Mapping[str, str] = os.environ) -> Tokens:
    """Returns the tokens of the door that `section` (`ranker.door`) describes and that listens on `host`.

    Raises:
        ConfigError: a token cannot be used; or there is none, and other machines could reach the door.
    """
    tokens = api_tokens(environ)
    if not tokens and not is_loopback(host):
        if not allow_anonymous:
            raise ConfigError(
                f"{section}.allow_anonymous: false is not allowed with host {host} and without API tokens; "
                f"set {VARIABLE}, listen on 127.0.0.1, or have it true in a network of your own"
            )
        _logger.warning("The door is open to all who reach it: no API tokens. section=%s host=%s", section, host)
    return tokens


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a door that listens on `host`.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "ranker-1", "")]
    [True, True, True, False, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_tokens(tokens: Tokens, app: WSGIApplication) -> WSGIApplication:
    """Returns a WSGI app that lets in who has a token, and tells anybody whether the process is well."""
    if not tokens:
        return app
    headers = [(name.decode().title(), value.decode()) for name, value in CHALLENGES]
    body = msgspec.json.encode({"error": "Authorization: a valid API token is needed"})

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == HEALTH_PATH or tokens.holder(environ.get("HTTP_AUTHORIZATION")) is not None:
            return app(environ, start_response)
        status = HTTPStatus.UNAUTHORIZED
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json"), *headers])
        return [body]

    return answer
