"""The server as a process: taken ports, a clean end, clients that dawdle, TLS."""

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ranker.exceptions import PortTakenError, TlsFileError
from ranker.server import MAX_HEAD_BYTES, HttpServer, PatientProtocol, ServerConfig, TlsConfig
from tests.integration.secured_kafka import make_certificates
from tests.ranker.given import wait_for

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


DRAINING = CHILD.replace('version="0")', 'version="0", is_draining=draining.is_set)').replace(
    "ServerConfig(port=0))", "ServerConfig(port=0, drain_s=60), draining=draining)"
)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_drains_says_so_and_serves_until_it_is_told_again(second: signal.Signals) -> None:
    program = f"import threading\ndraining = threading.Event()\n{DRAINING}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(child.stdout.readline())}"
            with httpx.Client(transport=httpx.HTTPTransport(retries=10), timeout=30) as http:
                assert http.get(f"{url}/v1/health").status_code == 200
                child.send_signal(signal.SIGTERM)
                wait_for(lambda: http.get(f"{url}/v1/health").status_code == 503, "it drains")
                assert http.get(f"{url}/v1/health").json() == {"status": "draining", "degraded": []}
            with httpx.Client() as newcomer:
                assert newcomer.get(f"{url}/v1/model").status_code == 200
            child.send_signal(second)
            assert child.stdout.read() == "flushed 1\n"
            assert child.wait(timeout=30) == 0
        finally:
            child.kill()


@pytest.mark.parametrize("settings", [{"port": -1}, {"port": 65536}, {"shutdown_timeout_s": 0}, {"drain_s": -1}])
def test_settings_that_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        ServerConfig(**settings)


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application that starts, stops, and answers `hi` without a look at the body."""
    if scope["type"] == "lifespan":
        for state in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{state}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@contextmanager
def listening(**settings: Any) -> Iterator[HttpServer]:
    server = HttpServer(hello, ServerConfig(port=0, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.is_serving, "the server serves")
        yield server
    finally:
        server.stop()
        thread.join()


def connected(server: HttpServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=20)


def ask(connection: socket.socket) -> None:
    """Has one request answered."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = b""
    while not answer.endswith(b"hi"):
        answer += connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 200 OK")


def said(connection: socket.socket) -> bytes:
    """Returns all that is received until the server hangs up."""
    answer = b""
    try:
        while part := connection.recv(65_536):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def test_the_end_of_an_answer_does_not_wait_for_an_acknowledgement_of_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_delay: list[int] = []

    def look(protocol: PatientProtocol, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("socket")
        no_delay.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(protocol, transport)

    made = PatientProtocol.connection_made
    monkeypatch.setattr(PatientProtocol, "connection_made", look)
    with listening() as server, connected(server) as client:
        ask(client)
    assert no_delay == [1]


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "], ids=["nothing", "half a head"])
@pytest.mark.parametrize("num_before", [0, 1])
def test_a_client_that_takes_too_long_to_say_what_it_wants_is_left(
    begun: bytes, num_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ranker.server.HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr("ranker.server.KEEP_ALIVE_S", 1)
    with listening() as server, connected(server) as slow:
        for _ in range(num_before):
            ask(slow)
        slow.sendall(begun)
        assert said(slow) == b""


def test_a_body_that_nobody_reads_any_more_is_not_taken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranker.server.HEAD_TIMEOUT_S", 0.2)
    with listening() as server, connected(server) as endless:
        endless.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        assert endless.recv(12) == b"HTTP/1.1 200"
        with pytest.raises(OSError):
            for _ in range(1_000):
                endless.sendall(b"x" * 1_000)
                threading.Event().wait(0.01)


def test_a_head_beyond_all_bounds_is_refused() -> None:
    with listening() as server, connected(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * MAX_HEAD_BYTES)
        assert said(client).startswith(b"HTTP/1.1 4")


def test_connections_beyond_the_limit_are_closed_and_those_within_it_live_on() -> None:
    with listening(max_connections=2) as server, connected(server) as one, connected(server) as two:
        ask(one)
        ask(two)
        with connected(server) as three:
            assert said(three) == b""
        ask(one)


def test_every_answer_tells_browsers_to_be_careful_and_not_who_serves() -> None:
    with listening() as server, httpx.Client(trust_env=False) as http:
        headers = http.get(f"http://127.0.0.1:{server.port}/").headers
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy
    assert not {"server", "access-control-allow-origin", "set-cookie"} & set(headers)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pem")
    make_certificates(folder)
    return folder


def test_tls_is_spoken_where_there_is_a_certificate(pem: Path) -> None:
    file = str(pem / "broker.pem")
    with listening(tls=TlsConfig(certificate_file=file, key_file=file)) as server:
        assert server.scheme == "https"
        url = f"https://localhost:{server.port}/"
        context = ssl.create_default_context(cafile=str(pem / "ca.pem"))
        with httpx.Client(trust_env=False, verify=context) as http:
            assert http.get(url).text == "hi"
        stranger = ssl.create_default_context(cafile=str(pem / "stranger.pem"))
        with httpx.Client(trust_env=False, verify=stranger) as http, pytest.raises(httpx.ConnectError, match="verify"):
            http.get(url)
        with connected(server) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"HTTP" not in said(plain)


def test_clients_may_have_to_show_a_certificate(pem: Path) -> None:
    file, authority = str(pem / "broker.pem"), str(pem / "ca.pem")
    tls = TlsConfig(certificate_file=file, key_file=file, client_ca_file=authority)
    with listening(tls=tls) as server:
        url = f"https://localhost:{server.port}/"
        context = ssl.create_default_context(cafile=authority)
        with httpx.Client(trust_env=False, verify=context) as http, pytest.raises(httpx.TransportError):
            http.get(url)
        context.load_cert_chain(str(pem / "client.pem"))
        with httpx.Client(trust_env=False, verify=context) as http:
            assert http.get(url).text == "hi"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"certificate_file": "a"}, "key_file: is missing; a certificate and its key go together"),
        ({"key_file": "a"}, "certificate_file: is missing; a certificate and its key go together"),
        ({"client_ca_file": "a"}, "client_ca_file: is not allowed without certificate_file"),
    ],
)
def test_tls_settings_that_are_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TlsConfig(**settings)


def test_a_certificate_that_cannot_be_used_is_one_sentence(pem: Path) -> None:
    file = str(pem / "broker.pem")
    for certificate, authority, told in [("none.pem", "", "certificate_file"), (file, "none.pem", "client_ca_file")]:
        tls = TlsConfig(certificate_file=certificate, key_file=file, client_ca_file=authority)
        with pytest.raises(TlsFileError, match=f"tls.{told}.*: cannot be used: .*No such file"):
            HttpServer(None, ServerConfig(port=0, tls=tls))
