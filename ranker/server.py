"""Runs the app under uvicorn: one process, one event loop, stops cleanly on SIGTERM and SIGINT."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from ranker.exceptions import PortTakenError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the ranker listens, and how it stops."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = 8620
    """Port to listen on, 0 to 65535; 0 takes a free one."""
    shutdown_timeout_s: int = 5
    """Seconds that requests in progress get to finish at the end; at least 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not allowed; 0 to 65535")
        if self.shutdown_timeout_s < 1:
            raise ValueError(f"shutdown_timeout_s: {self.shutdown_timeout_s} is not allowed; at least 1")


class HttpServer:
    """An app and the socket it listens on.

    Raises:
        PortTakenError: the address cannot be listened on.
    """

    def __init__(self, app: Any, config: ServerConfig) -> None:
        self._socket = _listen(config.host, config.port)
        self.host: str = config.host
        self.port: int = self._socket.getsockname()[1]
        """Where it really listens."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,  # logging is set up once, by whoever started the process
                access_log=False,  # per-request facts are counters
                lifespan="on",
                ws="none",
                timeout_graceful_shutdown=config.shutdown_timeout_s,
            )
        )

    def run(self) -> None:
        """Serves until SIGTERM, SIGINT or `stop`; then finishes what is in progress and returns."""
        with _quiet_end():
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Asks `run` to come to an end; may be called from any thread."""
        self._server.should_exit = True

    @property
    def is_serving(self) -> bool:
        """Whether requests are being answered."""
        return self._server.started


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
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
