"""Orders of the page: only from the page itself, only where allowed, and each refusal is one line."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from freshrank.config import load_config
from freshrank.control_door import ControlDoor
from freshrank.controls import Order, refusal_of
from freshrank.embedded import Service
from freshrank.faults import Faults
from freshrank.monitor import create_app
from freshrank.places import MonitorConfig
from freshrank.simulator_door import with_control
from freshrank.supervisor import Supervisor, SupervisorConfig
from sim.control import SimChange
from tests.freshrank.test_supervisor import WAIT, Clock, python, state_is

REPO_ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1:8600"
GOOD = {
    "host": HOST, "origin": f"http://{HOST}", "x-freshrank-control": "page", "content-type": "application/json",
}  # fmt: skip
WaitUntil = Callable[..., None]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def changes() -> list[SimChange]:
    return []


@pytest.fixture
def simulator(changes: list[SimChange]) -> Iterator[str]:
    """The door of a simulator that knows the scenarios `home` and `events`."""

    def change(wanted: SimChange) -> None:
        if wanted.open_scenario not in (None, "home", "events"):
            raise ValueError(f"scenario: {wanted.open_scenario!r} is not allowed; one of home, events")
        changes.append(wanted)

    server = make_server("127.0.0.1", 0, with_control(lambda environ, start: [b""], change), handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[Path, Supervisor]]:
    """A supervisor with a trainer and a Redis that can be stopped, its door served from a thread."""
    supervisor = Supervisor([python("trainer", WAIT)], tmp_path, Clock(), SupervisorConfig())
    redis = Supervisor([python("redis", WAIT)], tmp_path, Clock(), SupervisorConfig())
    supervisor.start()
    redis.start()
    child = redis._kept[0].child
    assert child is not None
    clock = Clock()
    opened = ControlDoor(
        tmp_path / "d.sock", Faults(supervisor, [Service(name="redis", endpoint="", process=child)], clock)
    )
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.is_set():
            opened.wait(0.02)

    thread = threading.Thread(target=serve)
    thread.start()
    yield tmp_path / "d.sock", supervisor
    is_over.set()
    thread.join()
    opened.close()
    supervisor.stop()
    redis.stop()


def page(simulator: str, door: Path | None, *more: str) -> "TestClient[Litestar]":
    nobody = ["joiner", "trainer", "agents"]
    settings = [f"monitor.simulator={simulator}", "monitor.controls=true", *(f"monitor.{name}=''" for name in nobody)]
    run = load_config(REPO_ROOT / "configs" / "demo.yaml", [*settings, *more])
    return TestClient(create_app(run, lambda: 5_000, door), base_url=f"http://{HOST}")


def send(client: "TestClient[Litestar]", order: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    answer = client.post("/api/controls", json=order, headers={"X-Freshrank-Control": "page", **headers})
    return answer.status_code, answer.json()


def test_order_goes_to_the_simulator_and_into_the_timeline(simulator: str, changes: list[SimChange]) -> None:
    with page(simulator, None) as client:
        assert send(client, {"requests_per_s": 60})[0] == 200
        assert send(client, {"open_scenario": "events"})[0] == 200
        assert [event["text"] for event in client.get("/api/state").json()["events"]] == [
            "you asked for 60 requests per second",
            "you opened scenario events, which the model does not know",
        ]
    assert changes == [SimChange(requests_per_s=60.0), SimChange(open_scenario="events")]


def test_what_is_refused_has_one_line_and_changes_nothing(simulator: str, changes: list[SimChange]) -> None:
    refusals = [
        ({"requests_per_s": 1e6}, "requests_per_s: 1e+06 is not allowed; 1 to 200"),
        ({"requests_per_s": -1}, "requests_per_s: -1 is not allowed; 1 to 200"),
        ({"requests_per_s": "many"}, "Expected `float | null`, got `str` - at `$.requests_per_s`"),
        ({"bots_for_s": 1e9}, "bots_for_s: 1e+09 is not allowed; 0 to 120"),
        ({"open_scenario": "moon"}, "scenario: 'moon' is not allowed; one of home, events"),
        ({"kill": "trainer"}, "kill, pause: not allowed; this page was not started by `freshrank up`"),
        ({"format": "disk"}, "Object contains unknown field `format`"),
        ({}, "body: exactly one of requests_per_s, bots_for_s, open_scenario, kill, pause is allowed"),
        ({"kill": "a", "pause": "b"}, "body: exactly one of requests_per_s, bots_for_s, open_scenario, kill, pause"),
        ([], "Expected `object`, got `array`"),
    ]
    with page(simulator, None) as client:
        for order, sentence in refusals:
            status, body = send(client, order)
            assert status == 400, order
            assert body["error"].startswith(sentence), body
            assert "\n" not in body["error"]
        assert client.get("/api/state").json()["events"] == []
    assert changes == []


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, None),
        ({"origin": None}, None),  # not a browser: those name the origin of every POST
        ({"origin": "https://evil.example"}, "Origin"),
        ({"origin": "http://127.0.0.1:8601"}, "Origin"),
        ({"origin": "null"}, "Origin"),
        ({"host": "evil.example:8600", "origin": "http://evil.example:8600"}, "Host"),  # a name made to mean us
        ({"host": "127.0.0.1.evil.example", "origin": "http://127.0.0.1.evil.example"}, "Host"),
        ({"host": "localhost:8600", "origin": "http://localhost:8600"}, None),
        ({"host": "[::1]:8600", "origin": "http://[::1]:8600"}, None),
        ({"host": None}, "Host"),
        ({"x-freshrank-control": None}, "X-Freshrank-Control"),
        ({"content-type": "text/plain"}, "Content-Type"),
        ({"content-type": "application/json; charset=utf-8"}, None),
    ],
)
def test_only_our_own_page_may_ask(headers: dict[str, str | None], reason: str | None) -> None:
    given = {name: value for name, value in (GOOD | headers).items() if value is not None}
    refused = refusal_of(given, b"{}")
    assert refused is None if reason is None else refused is not None and refused.startswith(f"{reason}:")


def test_refused_order_is_answered_403_before_anything_is_done(simulator: str, changes: list[SimChange]) -> None:
    with page(simulator, None) as client:
        status, body = send(client, {"requests_per_s": 60}, Origin="https://evil.example")
    assert status == 403
    assert body["error"].startswith("Origin: 'https://evil.example' is not allowed")
    assert changes == []


def test_without_controls_there_is_no_such_door(simulator: str) -> None:
    with page(simulator, None, "monitor.controls=false") as client:
        assert client.get("/api/controls").status_code == 404
        assert send(client, {"requests_per_s": 60})[0] == 404


def test_controls_are_for_this_machine_alone() -> None:
    with pytest.raises(ValueError, match=r"controls: true is not allowed with host 0\.0\.0\.0; only with localhost"):
        MonitorConfig(controls=True, host="0.0.0.0")


def test_simulators_door_refuses_browsers_and_those_without_the_header(
    simulator: str, changes: list[SimChange]
) -> None:
    import httpx

    url, order = f"http://{simulator}/control", {"requests_per_s": 5}
    ours = {"X-Freshrank-Control": "monitor"}
    assert httpx.post(url, json=order).status_code == 403
    assert httpx.post(url, json=order, headers=ours | {"Origin": f"http://{simulator}"}).status_code == 403
    assert httpx.get(url, headers=ours).status_code == 405
    assert httpx.post(url, content=b" " * 5_000, headers=ours).status_code == 413
    assert changes == []
    assert httpx.post(url, json=order, headers=ours).status_code == 200
    assert changes == [SimChange(requests_per_s=5.0)]


def test_simulator_that_does_not_answer_is_a_sentence(free_port: Callable[[], int]) -> None:
    with page(f"127.0.0.1:{free_port()}", None) as client:
        status, body = send(client, {"requests_per_s": 60})
    assert (status, body) == (502, {"error": "the simulator does not answer: ConnectError"})


def test_supervisors_door_kills_and_pauses_what_it_knows(
    simulator: str, door: tuple[Path, Supervisor], wait_until: WaitUntil
) -> None:
    path, supervisor = door
    assert path.stat().st_mode & 0o077 == 0
    with page(simulator, path) as client:
        assert client.get("/api/controls").json() | {"traffic": None} == {
            "kill": ["trainer"], "pause": ["redis"], "traffic": None,
        }  # fmt: skip
        assert send(client, {"kill": "monitor"}) == (400, {"error": "kill: monitor is not allowed; trainer"})
        assert send(client, {"pause": "kafka"}) == (400, {"error": "pause: kafka is not allowed; redis"})
        assert send(client, {"kill": "trainer"})[0] == 200
        wait_until(state_is(supervisor, "waiting"), "the supervisor has seen the end of the trainer")
        assert send(client, {"kill": "trainer"}) == (400, {"error": "kill: trainer does not run at the moment"})
        assert send(client, {"pause": "redis"})[0] == 200
        events = [event["text"] for event in client.get("/api/state").json()["events"]]
    assert events == ["you killed the trainer", "you stopped redis for 10 s"]
    assert supervisor.status()[0].num_failures == 0, "it was asked for"


def test_door_that_is_gone_offers_nothing_and_says_so(tmp_path: Path, simulator: str) -> None:
    with page(simulator, tmp_path / "gone.sock") as client:
        assert client.get("/api/controls").json()["kill"] == []
        assert send(client, {"kill": "trainer"}) == (
            502, {"error": "the supervisor does not answer: FileNotFoundError"},
        )  # fmt: skip


def test_somebody_who_connects_and_says_nothing_does_not_hold_the_supervisor_up(door: tuple[Path, Supervisor]) -> None:
    import socket

    path, _ = door
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as other:
        silent.connect(str(path))
        other.settimeout(10)
        other.connect(str(path))
        other.sendall(b"\n")
        assert json.loads(other.recv(1_024)) == {"kill": ["trainer"], "pause": ["redis"]}


def test_pause_ends_by_itself_and_with_the_run(tmp_path: Path, wait_until: WaitUntil) -> None:
    supervisor = Supervisor([python("redis", WAIT)], tmp_path, Clock(), SupervisorConfig())
    supervisor.start()
    child = supervisor._kept[0].child
    assert child is not None
    clock = Clock()
    faults = Faults(supervisor, [Service(name="redis", endpoint="", process=child)], clock)

    def is_stopped() -> bool:
        return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    order = Order(pause="redis").target()
    faults.do(order)
    wait_until(is_stopped, "it is stopped")
    faults.poll()
    assert is_stopped()
    clock.now_ms += 10_000
    faults.poll()
    wait_until(lambda: not is_stopped(), "it goes on")
    faults.do(order)
    wait_until(is_stopped, "it is stopped again")
    faults.end()
    wait_until(lambda: not is_stopped(), "it goes on at the end")
    supervisor.stop()


def test_orders_say_what_they_are() -> None:
    assert Order(bots_for_s=20).sentence() == "you let bots in for 20 s: 30 % of the requests click on everything"
    assert Order(pause="redis").sentence() == "you stopped redis for 10 s"
