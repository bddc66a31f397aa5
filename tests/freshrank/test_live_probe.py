"""The probe: over HTTP alone it finds out when the rankings know its action, and says when they do not."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from freshrank.live_probe import ITEM, USER, LiveProbe
from freshrank.metrics import exposition, registry
from freshrank.probe_command import readings
from freshrank.scrape import Scrape
from ranker.request import RequestDecoder, RequestLimits
from ranker.stats import RankerStats
from tests.ranker.given import SCHEMA, Clock


@dataclass
class Service:
    """A ranker whose model learns each action after `delay_ms`, and that may be down or refuse."""

    clock: Clock
    delay_ms: int = 400
    status: int = 200
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    model_hides_it: bool = False
    stopped: bool = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.status == 0:
            raise httpx.ConnectError("down")
        path, body = request.url.path, json.loads(request.content or b"{}")
        self.asked.append((path, body))
        answer: dict[str, Any] = {"request_id": "r1"}
        # What it knows lies 100 ms behind at best, and does not move while it learns.
        acted = [body["ts"] for path, body in self.asked if path == "/v1/feedback"]
        age_ms = 100 if not acted or self.clock.now_ms - acted[-1] >= self.delay_ms else 10_000
        answer["model_age_ms"] = None if self.model_hides_it and path == "/v1/model" else age_ms
        return httpx.Response(self.status, json=answer)

    def wait(self, seconds: float) -> bool:
        self.clock.now_ms += round(seconds * 1_000)
        return self.stopped

    def probe(self, timeout_ms: int = 5_000) -> LiveProbe:
        http = httpx.Client(base_url="http://ranker", transport=httpx.MockTransport(self))
        return LiveProbe(http, "home", "click", timeout_ms=timeout_ms, clock_ms=self.clock, wait=self.wait)


def test_time_is_from_the_action_to_the_ranking_that_knows_it() -> None:
    service = Service(Clock())
    probe = service.probe()
    probe.round()
    assert asdict(probe.counters) == {"actions": 1, "known": 1, "missed": 0, "failures": 0}
    assert probe.freshness_ms.total == 400
    paths = [path for path, _ in service.asked]
    assert paths == ["/v1/rank", "/v1/feedback", *4 * ["/v1/model"], "/v1/rank"], "two rankings, however long it takes"


def test_action_that_nobody_learns_is_missed_and_the_wait_is_bounded() -> None:
    service = Service(Clock(), delay_ms=10**9)
    probe = service.probe(timeout_ms=1_000)
    began_ms = service.clock.now_ms
    probe.round()
    assert asdict(probe.counters) == {"actions": 1, "known": 0, "missed": 1, "failures": 0}
    assert service.clock.now_ms - began_ms == 1_000
    assert sum(probe.freshness_ms.counts) == 0


def test_no_model_knows_nothing() -> None:
    service = Service(Clock(), model_hides_it=True)
    probe = service.probe()
    probe.round()
    assert probe.counters.missed == 1


def test_ranker_that_is_down_or_refuses_is_a_failure_and_the_next_round_tries_again() -> None:
    service = Service(Clock(), status=0)
    probe = service.probe()
    probe.round()
    service.status = 503
    probe.round()
    service.status = 200
    probe.round()
    assert asdict(probe.counters) == {"actions": 1, "known": 1, "missed": 0, "failures": 2}


def test_stop_ends_the_wait() -> None:
    service = Service(Clock(), delay_ms=10**9, stopped=True)
    probe = service.probe(timeout_ms=10**9)
    probe.round()
    assert asdict(probe.counters) == {"actions": 1, "known": 0, "missed": 0, "failures": 0}


def test_ranker_takes_what_the_probe_sends() -> None:
    service = Service(Clock())
    service.probe().round()
    decoder = RequestDecoder(SCHEMA, RequestLimits(), RankerStats())
    (_, ranked), (_, acted) = service.asked[:2]
    request = decoder.rank(json.dumps(ranked).encode())
    assert (request.user_id, request.item_ids, request.size) == (USER, [ITEM], 1)
    [feedback] = decoder.feedback(json.dumps(acted).encode(), now_ms=0)
    assert (feedback.user_id, feedback.item_id, feedback.request_id) == (USER, ITEM, "r1")
    assert feedback.ts == 1_000_000


def test_metrics_show_what_the_probe_has_seen() -> None:
    probe = Service(Clock()).probe()
    probe.round()
    scrape = Scrape.parse(exposition(registry("probe", lambda: readings(probe)))[0].decode())
    assert scrape.value("freshrank_probe_known_total") == 1
    name = "freshrank_probe_freshness_seconds"
    assert (scrape.value(f"{name}_sum"), scrape.value(f"{name}_bucket", "0.4")) == (0.4, 1)
