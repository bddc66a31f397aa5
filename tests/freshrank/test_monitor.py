"""The page's server: its files and nothing else, the state, the simulated world, and the ranker by proxy."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from freshrank.config import RunConfig, load_config
from freshrank.monitor import create_app

REPO_ROOT = Path(__file__).parents[2]
PAGE_FILES = sorted(path.name for path in (REPO_ROOT / "freshrank" / "page").iterdir())
NOW_MS = 1_790_000_000_000
Client = TestClient[Litestar]


class FakeRanker(BaseHTTPRequestHandler):
    """Answers every POST with what it got, and has metrics."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = "scenario" in body and body["scenario"] == "nowhere"
        self._answer(
            400 if refused else 200, {"error": "scenario: unknown"} if refused else {"path": self.path, "got": body}
        )

    def do_GET(self) -> None:
        self._answer(200, "freshrank_ranker_version 17\n")

    def _answer(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def fake_ranker() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeRanker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run_with(ranker: str) -> RunConfig:
    nobody = ["joiner", "trainer", "agents"]
    return load_config(
        REPO_ROOT / "configs" / "demo.yaml",
        [f"monitor.ranker={ranker}", "monitor.interval_ms=200", *(f"monitor.{name}=''" for name in nobody)],
    )


@pytest.fixture
def client(fake_ranker: str) -> Iterator[Client]:
    with TestClient(create_app(run_with(fake_ranker), lambda: NOW_MS)) as client:
        yield client


def test_page_and_its_files_are_served_and_nothing_else(client: Client) -> None:
    index = client.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    for path in PAGE_FILES:
        assert client.get(f"/page/{path}").status_code == 200, path
    for path in ("config.py", "..%2fconfig.py", "../config.py", ".", "nothing.js"):
        assert client.get(f"/page/{path}").status_code == 404, path


def test_page_asks_for_nothing_from_outside(client: Client) -> None:
    texts = [client.get(f"/page/{path}").text for path in PAGE_FILES]
    outside = [line for text in texts for line in text.splitlines() if "://" in line and "www.w3.org" not in line]
    assert outside == []


def test_every_module_of_the_page_asks_for_files_that_are_there() -> None:
    folder = REPO_ROOT / "freshrank" / "page"
    for path in folder.glob("*.js"):
        for name in re.findall(r'from "\./([a-z]+\.js)"', path.read_text()):
            assert (folder / name).is_file(), (path.name, name)


def test_every_id_that_a_module_looks_for_stands_in_the_page() -> None:
    folder = REPO_ROOT / "freshrank" / "page"
    ids = set(re.findall(r' id="([^"]+)"', (folder / "index.html").read_text()))
    for path in folder.glob("*.js"):
        text = path.read_text()
        wanted = re.findall(r'(?:getElementById|put|big|show|plotOf)\("([a-z0-9-]+)"', text)
        assert set(wanted) <= ids, path.name


def test_scraped_figures_reach_the_state(client: Client, wait_until: Callable[..., None]) -> None:
    wait_until(lambda: client.get("/api/state").json()["model"]["version"] == 17, "the ranker was scraped")
    state = client.get("/api/state").json()
    assert {process["name"]: process["up"] for process in state["processes"]} == {
        "ranker": True,
        "simulator": False,
        "monitor": True,
    }
    assert state["config_hash"]
    assert client.get("/api/history").json()["t_ms"][-1] == NOW_MS
    assert client.get(f"/api/history?since={NOW_MS}").json() == {"t_ms": []}
    refused = client.get("/api/history?since=yesterday")
    assert (refused.status_code, refused.json()) == (400, {"error": "since: 'yesterday' is not allowed; a time in ms"})


def test_candidates_are_those_of_the_simulated_world(client: Client) -> None:
    user = client.get("/api/users").json()["users"][0]
    found = client.get(f"/api/candidates?user_id={user}&scenario=search").json()
    assert len(set(found["candidates"]["id"])) == run_with("x:1").sim.candidates
    assert set(found["candidates"]["features"]) == {"category", "brand", "price", "tags"}
    assert found["actions"] == {"click": "click", "order": "order", "hide": "hide"}
    for query in ("user_id=nobody&scenario=home", "user_id=u0&scenario=nowhere"):
        refused = client.get(f"/api/candidates?{query}")
        assert refused.status_code == 400
        assert "is not allowed" in refused.json()["error"]


def test_rank_and_feedback_are_forwarded_with_the_clock_of_this_machine(client: Client) -> None:
    ranked = client.post("/api/rank", json={"user_id": "u1", "scenario": "home"}).json()
    assert ranked == {"path": "/v1/rank", "got": {"user_id": "u1", "scenario": "home"}, "now_ms": NOW_MS}
    sent = client.post("/api/feedback", json={"item_id": "i1", "action": "click"}).json()
    assert sent["got"] == {"ts": NOW_MS, "item_id": "i1", "action": "click"}
    assert sent["now_ms"] == NOW_MS
    assert client.post("/api/feedback", content=b"{").status_code == 400


def test_refusal_of_the_ranker_is_passed_on(client: Client) -> None:
    refused = client.post("/api/rank", json={"user_id": "u1", "scenario": "nowhere"})
    assert (refused.status_code, refused.json()) == (400, {"error": "scenario: unknown"})


def test_ranker_that_does_not_answer_is_a_sentence(free_port: Callable[[], int]) -> None:
    with TestClient(create_app(run_with(f"127.0.0.1:{free_port()}"), lambda: NOW_MS)) as client:
        refused = client.post("/api/rank", json={"user_id": "u1", "scenario": "home"})
    assert refused.status_code == 502
    assert refused.json()["error"].startswith("the ranker does not answer")


def test_without_a_simulator_the_panel_says_why(fake_ranker: str) -> None:
    run = load_config(REPO_ROOT / "configs" / "demo.yaml", [f"monitor.ranker={fake_ranker}", "monitor.simulator=''"])
    with TestClient(create_app(run, lambda: NOW_MS)) as client:
        refused = client.get("/api/users")
    assert refused.status_code == 404
    assert "monitor.simulator" in refused.json()["error"]
