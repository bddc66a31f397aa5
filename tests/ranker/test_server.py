"""The server as a process: taken ports, and a clean end."""

import signal
import socket
import subprocess
import sys

import httpx
import pytest

from ranker.exceptions import PortTakenError
from ranker.server import HttpServer, ServerConfig

CHILD = """
from tests.ranker.given import parts, Log
from ranker.server import HttpServer, ServerConfig
from ranker.service import create_app
given = parts()
app = create_app(given.ranker, given.watcher, given.limits, metrics_text=lambda: b"", version="0")
server = HttpServer(app, ServerConfig(port=0))
print(server.port, flush=True)
server.run()
print("flushed", given.log.num_flushed, flush=True)
"""


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            HttpServer(None, ServerConfig(port=port))


def test_an_address_that_is_not_ours_is_one_sentence() -> None:
    with pytest.raises(PortTakenError, match="cannot listen on 192.0.2.1 port 0: "):
        HttpServer(None, ServerConfig(host="192.0.2.1", port=0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(child.stdout.readline())}"
            transport = httpx.HTTPTransport(retries=10)
            with httpx.Client(transport=transport, timeout=30) as http:
                assert http.get(f"{url}/v1/health").status_code == 200
            child.send_signal(number)
            assert child.stdout.read() == "flushed 1\n"
            assert child.wait(timeout=30) == 0
        finally:
            child.kill()


@pytest.mark.parametrize("settings", [{"port": -1}, {"port": 65536}, {"shutdown_timeout_s": 0}])
def test_settings_that_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        ServerConfig(**settings)
