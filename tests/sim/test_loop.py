"""The closed loop against a small ranking service."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import numpy as np
import pytest

from sim.catalogue import CATEGORIES
from sim.client import RankClient
from sim.config import SimConfig
from sim.exceptions import UnreachableError
from sim.loop import Simulator
from sim.scenario import ScenarioConfig
from sim.world import World

CONFIG = SimConfig(num_users=50, num_items=100, requests_per_s=400.0, time_scale=0.02, retry_s=0.05, max_in_flight=8)


class Service:
    """Shows candidates in the order given by `rank`, keeps the feedback, and can be broken."""

    def __init__(self) -> None:
        self.rank: Callable[[dict[str, Any]], list[str]] = lambda request: request["candidates"]["id"]
        self.requests: dict[str, dict[str, Any]] = {}
        self.feedback: list[dict[str, Any]] = []
        self.status = 200
        self.hangs_up = False
        """Whether each connection is closed after one answer, without a word."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802 (the name is the base class's)
                body = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
                answer = msgspec.json.encode(service.answer(self.path, body))
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                self.close_connection = service.hangs_up

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def answer(self, path: str, body: Any) -> Any:
        if self.status != 200:
            return {"error": "out of order"}
        if path == "/v1/feedback":
            self.feedback += body
            return {"accepted": len(body)}
        request_id = f"r{len(self.requests)}"
        self.requests[request_id] = body
        return {
            "request_id": request_id,
            "snapshot": 7,
            "items": [{"id": item_id} for item_id in self.rank(body)[: body["size"]]],
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def simulator(url: str, config: SimConfig = CONFIG) -> Simulator:
    return Simulator(
        World(config), config, url, now_ms=lambda: time.time_ns() // 1_000_000, rng=np.random.default_rng(1)
    )


def run_until(simulator: Simulator, is_done: Callable[[], bool], limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    simulator.run(lambda: is_done() or time.monotonic() > end_s)
    assert is_done(), simulator.counters


def test_users_ask_act_and_report(service: Service) -> None:
    sim = simulator(service.url)
    run_until(sim, lambda: sim.counters.feedback_sent >= 100)
    counters = sim.counters
    assert counters.requests == sim.lift.lifetime.requests > 0
    assert counters.requests_failed == counters.requests_unreachable == counters.feedback_refused == 0
    assert counters.unranked == counters.degraded == 0
    assert len(service.feedback) == counters.feedback_sent
    for feedback in service.feedback:
        request = service.requests[feedback["request_id"]]
        assert feedback["user_id"] == request["user_id"]
        assert feedback["item_id"] in request["candidates"]["id"][: request["size"]]
        assert feedback["action"] in ("click", "order", "hide")
    assert {request["scenario"] for request in service.requests.values()} == {"home", "search", "deals"}


def test_users_come_to_a_late_scenario_when_its_time_has_come(service: Service) -> None:
    scenarios = CONFIG.scenarios | {"events": ScenarioConfig(share=2.0, from_s=0.5)}
    sim = simulator(service.url, replace(CONFIG, scenarios=scenarios))
    seen_s: list[tuple[float, str]] = []

    def rank(request: dict[str, Any]) -> list[str]:
        seen_s.append((time.monotonic() - started_s, request["scenario"]))
        ids: list[str] = request["candidates"]["id"]
        return ids

    service.rank = rank
    started_s = time.monotonic()
    run_until(sim, lambda: sum(scenario == "events" for _, scenario in seen_s) >= 200)
    first_s = next(second for second, scenario in seen_s if scenario == "events")
    assert first_s >= 0.5
    assert {scenario for second, scenario in seen_s if second >= first_s} == {"home", "search", "deals", "events"}
    assert sim.counters.requests_failed == 0


def test_lift_tells_a_good_service_from_a_bad_one(service: Service) -> None:
    shares = {}
    world = World(CONFIG)

    def by_taste(sign: int) -> Callable[[dict[str, Any]], list[str]]:
        def rank(request: dict[str, Any]) -> list[str]:
            taste_D = world.taste(request["user_id"], time.time_ns() // 1_000_000)
            category = world.catalogue.category_vec @ taste_D
            liking = dict(zip(CATEGORIES, category, strict=True))
            items = zip(request["candidates"]["id"], request["candidates"]["features"]["category"], strict=True)
            return [i for i, _ in sorted(items, key=lambda pair: -sign * liking[pair[1]])]

        return rank

    for name, sign in (("liked", 1), ("disliked", -1)):
        service.rank = by_taste(sign)
        sim = simulator(service.url)
        run_until(sim, lambda sim=sim: sim.counters.requests >= 300)  # type: ignore[misc]
        shares[name] = sim.lift.lifetime.share
    assert shares["liked"] > 0.2 > -0.1 > shares["disliked"]


def test_users_wait_for_a_service_that_is_gone(service: Service) -> None:
    service.close()
    sim = simulator(service.url)
    run_until(sim, lambda: sim.counters.requests_unreachable >= 3 and sim.counters.skipped_down >= 3)
    assert sim.counters.requests == 0


def test_a_call_without_an_answer_is_repeated_for_feedback_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = simulator(service.url)

    send, failures = RankClient.send_feedback, iter(range(3))

    def flaky(client: RankClient, feedback: list[Any]) -> None:
        if next(failures, None) is not None:
            raise UnreachableError("POST /v1/feedback: gone")
        send(client, feedback)

    monkeypatch.setattr(RankClient, "send_feedback", flaky)
    run_until(sim, lambda: sim.counters.feedback_sent >= 50)
    assert sim.counters.feedback_unreachable == 3
    assert len({f["event_id"] for f in service.feedback}) == len(service.feedback) == sim.counters.feedback_sent


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_again(service: Service) -> None:
    service.hangs_up = True
    sim = simulator(service.url)
    run_until(sim, lambda: sim.counters.requests >= 50 and sim.counters.feedback_sent >= 5)
    assert sim.counters.requests_unreachable == sim.counters.feedback_unreachable == 0
    assert 0 <= len(service.requests) - sim.counters.requests <= CONFIG.max_in_flight  # under way at the end


def test_errors_and_foreign_items_are_counted_and_users_go_on(service: Service) -> None:
    sim = simulator(service.url)
    service.status = 500
    run_until(sim, lambda: sim.counters.requests_failed >= 5)
    service.status = 200
    service.rank = lambda request: ["stranger"]
    sim = simulator(service.url)
    run_until(sim, lambda: sim.counters.requests_failed >= 5)
    assert sim.counters.requests == 0
    assert sim.counters.skipped_down == 0


def test_arrivals_do_not_wait_for_a_slow_service(service: Service) -> None:
    release = threading.Event()

    def slow(request: dict[str, Any]) -> list[str]:
        release.wait(10)
        return request["candidates"]["id"]

    service.rank = slow
    sim = simulator(service.url, replace(CONFIG, max_in_flight=2, request_timeout_s=10.0))
    end_s = time.monotonic() + 20

    def is_done() -> bool:
        if sim.counters.skipped_busy >= 20:
            release.set()
        return sim.counters.requests >= 2 or time.monotonic() > end_s

    sim.run(is_done)
    assert sim.counters.skipped_busy >= 20
    assert sim.counters.requests >= 2


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="^base_url: 'localhost:80' is not allowed"):
        simulator("localhost:80")
