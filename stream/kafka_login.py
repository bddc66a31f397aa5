"""The first handshake with a broker, done by ourselves, so that a refusal is told at once and by its reason.

kafka-python tries again and again after a certificate or a password was refused, and drops the broker's answer when
the connection is closed with it. So before it connects we do once what it will do: connect, TLS, login, hang up.

    SaslHandshake v1 (which mechanism)  ->  SaslAuthenticate v0 (bytes of the mechanism, until it is done)
"""

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any

from kafka.net.sasl import get_sasl_mechanism

_DEFAULT_PORT = 9092
_HANDSHAKE, _AUTHENTICATE = (17, 1), (36, 0)
"""Key and version of both requests."""


class RefusedError(Exception):
    """The broker's certificate, or our login, is refused; the text says why."""


def shake_hands(server: str, settings: Mapping[str, Any], timeout_s: float) -> None:
    """Returns when `server` (`host:port`) has let us in; `settings` are security settings as kafka-python has them.

    Raises:
        RefusedError: it does not, or we do not trust it.
        OSError: it does not answer.
    """
    host, _, port = server.rpartition(":") if ":" in server else (server, "", str(_DEFAULT_PORT))
    host = host.strip("[]")
    context: ssl.SSLContext | None = settings.get("ssl_context")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        try:
            if context is not None:
                with context.wrap_socket(connection, server_hostname=host) as encrypted:
                    _log_in(encrypted, host, settings)
            else:
                _log_in(connection, host, settings)
        except ssl.SSLError as error:
            raise RefusedError(f"TLS failed: {error}") from error


def _log_in(connection: socket.socket, host: str, settings: Mapping[str, Any]) -> None:
    name = settings.get("sasl_mechanism")
    if name is None:
        return
    answer = _ask(connection, _HANDSHAKE, _string(name))
    if answer[:2] != b"\0\0":
        raise RefusedError(f"SASL failed: the broker does not offer {name}")
    mechanism = get_sasl_mechanism(name)(host=host, **settings)
    while not mechanism.is_done():
        token = mechanism.auth_bytes()
        answer = _ask(connection, _AUTHENTICATE, struct.pack(">i", len(token)) + token)
        error, length = struct.unpack_from(">hh", answer)
        reason = answer[4 : 4 + max(0, length)].decode(errors="replace")
        if error:
            raise RefusedError(f"SASL failed: {reason or f'error {error}'}")
        mechanism.receive(answer[4 + max(0, length) + 4 :])
    if not mechanism.is_authenticated():
        raise RefusedError("SASL failed: the broker does not know our password either")


def _ask(connection: socket.socket, request: tuple[int, int], body: bytes) -> bytes:
    """Returns the body of the answer to one request."""
    message = struct.pack(">hhi", *request, 0) + _string("freshrank") + body
    connection.sendall(struct.pack(">i", len(message)) + message)
    (length,) = struct.unpack(">i", _read(connection, 4))
    return _read(connection, length)[4:]  # after the number of the request


def _read(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise ConnectionError("the broker hangs up; is this a listener for security.protocol as it is set?")
        received += part
    return received


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
