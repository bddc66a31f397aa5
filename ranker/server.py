"""Runs the app under uvicorn: one process, one event loop, stops cleanly on SIGTERM and SIGINT."""

import asyncio
import gc
import math
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ranker.exceptions import PortTakenError, TlsFileError

HEAD_TIMEOUT_S = 10.0
"""How long a connection may be without a whole request head before it is closed."""
KEEP_ALIVE_S = 5
"""How long a connection may be idle after an answer."""
MAX_HEAD_BYTES = 32_768
HEADERS = (("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY"))
"""Go with every answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """HTTPS instead of HTTP. Files in PEM, read at the start."""

    certificate_file: str = ""
    """The server's certificate, with those between it and its authority; empty: HTTP."""
    key_file: str = ""
    """The certificate's key, without a password; readable by this user alone."""
    client_ca_file: str = ""
    """Authorities of which every client must show a certificate; empty: clients need none."""

    def __post_init__(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            lacking = "key_file" if self.certificate_file else "certificate_file"
            raise ValueError(f"{lacking}: is missing; a certificate and its key go together")
        if self.client_ca_file and not self.certificate_file:
            raise ValueError("client_ca_file: is not allowed without certificate_file")

    def context(self) -> ssl.SSLContext | None:
        """Returns what the server speaks TLS with; None without a certificate.

        Raises:
            TlsFileError: a file cannot be used.
        """
        if not self.certificate_file:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and later
        try:
            context.load_cert_chain(
                self.certificate_file, self.key_file, password=lambda: ""
            )  # never asks on a terminal
        except (OSError, ValueError) as error:
            raise TlsFileError(f"tls.certificate_file, tls.key_file: cannot be used: {error}") from error
        if self.client_ca_file:
            try:
                context.load_verify_locations(self.client_ca_file)
            except OSError as error:
                raise TlsFileError(f"tls.client_ca_file: cannot be used: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the ranker listens, and how it stops."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = 8620
    """Port to listen on, 0 to 65535; 0 takes a free one."""
    drain_s: float = 0.0
    """Seconds after SIGTERM in which it still serves, while `/v1/health` says `draining` with HTTP 503, so that a load
    balancer sends nobody any more before the door closes; at least 0. A second SIGTERM ends that."""
    shutdown_timeout_s: int = 5
    """Seconds that requests in progress get to finish at the end; at least 1."""
    max_connections: int = 1_000
    """Connections at once; further ones are closed at once. At least 1."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    """HTTPS instead of HTTP."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not allowed; 0 to 65535")
        if not 0 <= self.drain_s < math.inf:
            raise ValueError(f"drain_s: {self.drain_s} is not allowed; at least 0")
        if self.shutdown_timeout_s < 1:
            raise ValueError(f"shutdown_timeout_s: {self.shutdown_timeout_s} is not allowed; at least 1")
        if self.max_connections < 1:
            raise ValueError(f"max_connections: {self.max_connections} is not allowed; at least 1")


class HttpServer:
    """An app and the socket it listens on.

    Raises:
        PortTakenError: the address cannot be listened on.
        TlsFileError: its certificate or key cannot be used.
    """

    def __init__(
        self,
        app: Any,
        config: ServerConfig,
        *,
        content_policy: str = "default-src 'none'",
        draining: threading.Event | None = None,
    ) -> None:
        """Listens. `content_policy` says what the app's pages may load; nobody may show them in a frame.

        `draining` is set when SIGTERM has come, `config.drain_s` before the door closes.
        """
        tls = config.tls.context()
        self._socket = _listen(config.host, config.port)
        self.host: str = config.host
        self.port: int = self._socket.getsockname()[1]
        """Where it really listens."""
        self.scheme: str = "https" if tls else "http"
        policy = f"{content_policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self._server = _Server(
            uvicorn.Config(
                app,
                http=type("Connection", (PatientProtocol,), {"max_connections": config.max_connections}),
                log_config=None,  # logging is set up once, by whoever started the process
                access_log=False,  # per-request facts are counters
                lifespan="on",
                ws="none",
                proxy_headers=False,  # a client could claim any address
                server_header=False,
                headers=[*HEADERS, ("content-security-policy", policy)],
                timeout_keep_alive=KEEP_ALIVE_S,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=config.shutdown_timeout_s,
                ssl_context_factory=(lambda *_: tls) if tls else None,
            ),
            config.drain_s,
            draining or threading.Event(),
        )

    def run(self) -> None:
        """Serves until SIGTERM, SIGINT or `stop`; then finishes what is in progress and returns."""
        # What is there by now stays: a full collection that looked at it again, 375,000 objects, would hold up all.
        gc.collect()
        gc.freeze()
        with _quiet_end():
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Asks `run` to come to an end; may be called from any thread."""
        self._server.should_exit = True

    @property
    def is_serving(self) -> bool:
        """Whether requests are being answered."""
        return self._server.started


class _Server(uvicorn.Server):
    """uvicorn's server, which goes on for a while after SIGTERM."""

    def __init__(self, config: uvicorn.Config, drain_s: float, draining: threading.Event) -> None:
        super().__init__(config)
        self._drain_s, self._draining = drain_s, draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`. Ctrl-C and a second SIGTERM do not wait."""
        is_first = not self._draining.is_set()
        self._draining.set()
        if sig == signal.SIGTERM and is_first and self._drain_s > 0:
            timer = threading.Timer(self._drain_s, super().handle_exit, (sig, frame))
            timer.daemon = True  # a second signal must not wait for it
            timer.start()
        else:
            super().handle_exit(sig, frame)


class PatientProtocol(H11Protocol):
    """uvicorn's connection with two limits that it lacks: on their number, and on the wait for a request's head.

    uvicorn itself closes a connection that is idle after an answer, but waits for ever for a first request, and for the
    rest of a head that has begun. A body that nobody reads any more is under the same limit.
    """

    max_connections = 1_000
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that says TCP does asyncio turn Nagle's algorithm off: else answers wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortTakenError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Keeps a clean stop at exit code 0: uvicorn, when done, raises the signal that ended it once more."""
    if threading.current_thread() is not threading.main_thread():  # no signals arrive elsewhere
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
