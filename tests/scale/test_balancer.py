"""`docker/haproxy.cfg` in front of small stand-ins for rankers, each on a host of its own: who drains loses nobody."""

import http.client
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freshrank.children import Child
from tests.scale.cluster import BALANCER, RANKER_PORT
from tests.scale.hosts import Switch, missing
from tests.scale.names import NameServer

RANKER = """
import signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
draining = threading.Event()
seen = []

class Ranker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(503 if draining.is_set() else 200)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print("asked", flush=True)
        time.sleep(0.05)
        if self.path == "/v1/break":
            self.connection.close()
        else:
            self.answer(200)
    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Ranker)
def drain(*_):
    draining.set()
    threading.Timer(2.0, server.shutdown).start()
signal.signal(signal.SIGTERM, drain)
server.serve_forever()
server.server_close()
"""


class World:
    """Two rankers behind a balancer."""

    def __init__(self, switch: Switch, names: NameServer, folder: Path) -> None:
        self.rankers: dict[str, Child] = {}
        for number in (1, 2):
            host = switch.add(f"ranker-{number}")
            argv = [*host.enter, sys.executable, "-c", RANKER, host.address, str(RANKER_PORT)]
            self.rankers[host.address] = Child(argv, folder / f"ranker-{number}.log")
        names.addresses = list(self.rankers)
        host = switch.add("balancer")
        switch.use_names_of(host, switch.address)
        env = {**os.environ, "RANKERS": f"ranker:{RANKER_PORT}"}
        self.balancer = Child([*host.enter, "haproxy", "-db", "-f", str(BALANCER)], folder / "balancer.log", env)
        self.address = (host.address, RANKER_PORT)

    def ask(self, path: str = "/v1/rank", method: str = "POST") -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            connection.request(method, path, b"{}" if method == "POST" else None)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers.get("X-Freshrank-Ranker", "")
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def num_asked(self) -> int:
        return sum(child.log_path.read_text().count("asked") for child in self.rankers.values())

    def close(self) -> None:
        for child in (self.balancer, *self.rankers.values()):
            child.kill()


@pytest.fixture
def world(tmp_path: Path, wait_until: Callable[..., None]) -> Iterator[World]:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not on the PATH")
    if lacking := missing():
        pytest.skip(lacking)
    switch = Switch()
    names = NameServer(switch.address)
    world = World(switch, names, tmp_path)
    try:
        wait_until(lambda: len({world.ask()[1] for _ in range(8)} - {""}) == 2, "both rankers are found", timeout_s=30)
        yield world
    finally:
        world.close()
        names.close()
        switch.close()


def test_who_drains_or_is_gone_loses_no_request_and_nothing_is_asked_twice(world: World) -> None:
    drained, other = world.rankers
    assert world.ask("/metrics", "GET")[0] == 404
    assert world.ask("/v1/health", "GET")[0] == 200
    replies: Counter[tuple[int, str]] = Counter()
    is_over = threading.Event()

    def users() -> None:
        while not is_over.is_set():
            replies[world.ask()] += 1

    threads = [threading.Thread(target=users) for _ in range(4)]
    before = world.num_asked()
    for thread in threads:
        thread.start()
    code = world.rankers[drained].stop(20)  # SIGTERM: it drains for two seconds
    time.sleep(0.5)
    replies_after = Counter(replies)
    time.sleep(0.5)
    is_over.set()
    for thread in threads:
        thread.join()
    assert code == 0
    assert {status for status, _ in replies} == {200}
    assert {ranker for _, ranker in replies - replies_after} == {other}
    assert world.num_asked() - before == replies.total()
    before = world.num_asked()
    assert world.ask("/v1/break")[0] == 502, "a request that broke off may have been logged: it is not sent again"
    assert world.num_asked() - before == 1
    world.rankers[other].kill()
    assert world.ask()[0] == 503
