"""The whole ranker through real HTTP: answers, refusals, degraded modes, and what is logged meanwhile."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis

from model.snapshot import Manifest
from model.store import Lane, MemorySnapshotStore, StoreConfig
from model.store_redis import RedisSnapshotStore
from ranker.blender_follow import BlenderFollower, BlenderWatcher
from ranker.openapi import ENDPOINTS
from ranker.request import RequestLimits
from stream.codec import encode_sequence
from stream.schema import Sequence
from tests.ranker.given import DEADLINE_S, ITEMS, Log, Parts, Trainer, body, parts, redis_process, served, wait_for
from tests.utility_blender.some_versions import some_version
from utility_blender.blend import BlenderConfig
from utility_blender.explore import ExploreConfig
from utility_blender.store import MemoryBlenderStore

ACTION = {"request_id": "r-0", "user_id": "u1", "item_id": "i1", "action": "click"}


class Client:
    """A ranker that serves, and a client of it."""

    def __init__(self, given: Parts, http: httpx.Client) -> None:
        self.given = given
        self.http = http
        self.trainer = Trainer(given.store)

    def publish(self, kind: str = "full", **changes: Any) -> None:
        """Publishes the next version and waits until it is served."""
        version = self.trainer.publish(kind, **changes).version
        wait_for(lambda: self.get("/v1/model")["version"] == version, f"version {version} is served")

    def rank(self, **changes: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/rank", json=body(**changes))
        assert answer.status_code == 200, answer.text
        decoded: dict[str, Any] = answer.json()
        return decoded

    def get(self, path: str) -> dict[str, Any]:
        decoded: dict[str, Any] = self.http.get(path).json()
        return decoded


@contextmanager
def serving(given: Parts, blender_watcher: BlenderWatcher | None = None) -> Iterator[Client]:
    with served(given, blender_watcher) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        yield Client(given, http)


@pytest.fixture
def client() -> Iterator[Client]:
    with serving(parts(limits=RequestLimits(max_body_bytes=20_000))) as client:
        yield client


def test_a_ranking_is_answered_from_the_newest_version_and_logged(client: Client) -> None:
    client.publish()
    client.publish("delta")
    answer = client.rank()
    assert (answer["snapshot"], answer["degraded"], answer["explore"]) == (2, [], False)
    assert answer["scenario"] == "home"
    assert answer["model_age_ms"] == client.given.clock.now_ms - 2_000
    assert [item["position"] for item in answer["items"]] == [0, 1, 2, 3, 4]
    assert set(answer["items"][0]["scores"]) == {"click", "order"}
    (impression,) = client.given.log.impressions()
    assert impression.request_id == answer["request_id"]
    assert impression.items.id == [item["id"] for item in answer["items"]]
    assert impression.items.utility == [item["utility"] for item in answer["items"]]
    topic, key, _ = client.given.log.sent[0]
    assert (topic, key) == ("t-impressions", b"u1")


@pytest.mark.parametrize(("lane", "logged"), [("stable", ""), ("canary", "canary")])
def test_what_a_canary_served_says_so_in_the_log(client: Client, lane: Lane, logged: str) -> None:
    client.publish()
    client.given.ranker.follower.lane = lane
    client.rank()
    (impression,) = client.given.log.impressions()
    assert impression.served is not None and impression.served.lane == logged


def test_without_a_model_it_answers_in_input_order_and_is_better_as_soon_as_there_is_one(client: Client) -> None:
    answer = client.rank()
    assert [item["id"] for item in answer["items"]] == ITEMS[:5]
    assert answer["degraded"] == ["no_model"] and answer["items"][0]["utility"] is None
    wait_for(lambda: client.given.watcher.has_looked, "the store has been asked")
    assert client.get("/v1/health") == {"status": "degraded", "degraded": ["no_model"]}
    client.publish()
    assert client.rank()["degraded"] == []
    assert client.get("/v1/health") == {"status": "ready", "degraded": []}


class SlowStore(MemorySnapshotStore):
    """A store that answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        self.may_answer.wait(DEADLINE_S)
        return super().pointer(lane)


def test_a_new_ranker_is_starting_until_the_store_has_been_asked_and_answers_all_the_same() -> None:
    store = SlowStore()
    with serving(parts(store=store)) as client:
        answer = client.http.get("/v1/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "starting", "degraded": []})
        assert client.rank()["degraded"] == ["no_model", "snapshots"]
        store.may_answer.set()
        wait_for(lambda: client.http.get("/v1/health").status_code == 200, "it is ready")


def test_freshness_is_from_the_action_to_the_first_request_scored_by_who_knows_it(client: Client) -> None:
    client.rank()
    client.given.clock.now_ms = 3_500
    client.publish()  # knows an action at 1,000
    assert client.get("/v1/model")["freshness"]["n"] == 0
    client.rank()
    client.given.clock.now_ms = 9_000
    client.rank()
    assert client.get("/v1/model")["freshness"] == {"p50_ms": 2_500.0, "p99_ms": 2_500.0, "n": 1}


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        (b"{", 400, "body: not JSON: Input data was truncated"),
        (json.dumps(body(size=0)).encode(), 400, "size: 0 is not allowed; at least 1"),
        (json.dumps(body(scenario="shop")).encode(), 400, "scenario: 'shop' is not one of home, search"),
        (b" " * 20_001, 413, "body: more than 20000 bytes are not allowed"),
    ],
)
def test_a_bad_ranking_request_is_one_line(client: Client, content: bytes, status: int, error: str) -> None:
    answer = client.http.post("/v1/rank", content=content)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert client.given.log.sent == []
    assert client.given.stats.requests_refused == (status == 400)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/rank", 405), ("POST", "/v1/health", 405)]
)
def test_a_wrong_address_is_an_error_in_the_same_form(client: Client, method: str, path: str, status: int) -> None:
    answer = client.http.request(method, path)
    assert answer.status_code == status and list(answer.json()) == ["error"]


def test_feedback_is_accepted_one_by_one_and_in_lists(client: Client) -> None:
    one = client.http.post("/v1/feedback", json=ACTION)
    two = client.http.post("/v1/feedback", json=[ACTION | {"ts": 5}, ACTION | {"event_id": "e-1", "value": 30}])
    assert (one.status_code, one.json(), two.json()) == (202, {"accepted": 1}, {"accepted": 2})
    logged = client.given.log.feedback()
    assert [(f.ts, f.value) for f in logged] == [(1_000_000, 1.0), (5, 1.0), (1_000_000, 30.0)]
    assert logged[2].event_id == "e-1"
    assert client.given.log.sent[0][:2] == ("t-feedback", b"u1")


def test_feedback_sent_twice_with_its_time_has_one_event_id(client: Client) -> None:
    for _ in range(2):
        client.http.post("/v1/feedback", json=ACTION | {"ts": 5})
    first, again = client.given.log.feedback()
    assert first.event_id == again.event_id != ""


def test_of_bad_feedback_nothing_is_taken(client: Client) -> None:
    answer = client.http.post("/v1/feedback", json=[ACTION, ACTION | {"action": ""}])
    assert (answer.status_code, answer.json()) == (400, {"error": "[1].action: must not be empty"})
    assert client.given.log.sent == [] and client.given.stats.feedback_refused == 1


def test_a_full_log_never_stops_a_ranking_but_feedback_is_told() -> None:
    with serving(parts(log=Log(capacity=1))) as client:
        client.publish()
        assert client.rank()["degraded"] == []
        assert client.rank()["degraded"] == ["impressions"]
        assert client.get("/v1/health")["degraded"] == ["impressions"]
        answer = client.http.post("/v1/feedback", json=[ACTION, ACTION])
        assert answer.status_code == 503
        assert answer.json() == {"error": "0 of 2 actions were taken, the log's buffer is full: try again"}
        stats = client.given.stats
        assert (stats.impressions, stats.impressions_dropped, stats.feedback_dropped) == (1, 1, 2)


def test_explored_requests_say_so_and_log_the_rest() -> None:
    exploring = BlenderConfig(
        weights={"default": {"click": 1.0, "order": 5.0}}, explore=ExploreConfig(share=1.0, allow_above_cap=True)
    )
    with serving(parts(blender=exploring)) as client:
        client.publish()
        answer = client.rank()
        assert answer["explore"] and answer["items"][0]["propensity"] is None
        (impression,) = client.given.log.impressions()
        assert impression.served is not None and impression.served.log_density is not None
        assert impression.candidates is not None and len(impression.candidates.id) == 7
        assert client.given.stats.explored == 1


def test_an_unforeseen_error_is_a_500_without_inner_matters(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(body: bytes, now_ms: int) -> None:
        raise RuntimeError("inner matters")

    monkeypatch.setattr(client.given.ranker.decoder, "feedback", fail)
    answer = client.http.post("/v1/feedback", json=ACTION)
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error, see the ranker's log"})


def test_metrics_counters_and_documents_are_served(client: Client) -> None:
    client.rank(user={"shoe": 42})
    metrics = client.http.get("/metrics")
    assert metrics.text == "up 1\n" and metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    counters = client.get("/v1/model")["counters"]
    assert (counters["requests"], counters["unknown_features"]) == (1, {"shoe": 1})
    document = client.get("/openapi.json")
    assert document["info"]["version"] == "1.2.3"
    page = client.http.get("/docs").text
    assert not re.search(r"(src|href)=.?https?:", page) and "RankRequest" in page and "candidates" in page


def test_the_openapi_document_names_every_route_and_no_other(client: Client) -> None:
    document = client.get("/openapi.json")
    for endpoint in ENDPOINTS:
        answer = client.http.request(endpoint.method, endpoint.path)
        assert answer.status_code in (*endpoint.answers, 400)
        assert endpoint.method in document["paths"][endpoint.path]
    assert len(document["paths"]) == len(ENDPOINTS)


def test_stopping_flushes_the_log_and_ends_the_watcher() -> None:
    given = parts()
    with serving(given) as client:
        client.rank()
    assert given.log.num_flushed == 1
    assert not given.watcher._thread.is_alive()


def test_with_redis_killed_in_between_every_request_is_answered_and_all_is_well_afterwards() -> None:
    with redis_process() as server:
        store = RedisSnapshotStore(server.url, "test", StoreConfig(timeout_ms=200))
        given = parts(store=store, redis_url=server.url)
        with serving(given) as client:
            with redis.Redis.from_url(server.url) as writer:
                writer.set("freshrank:seq:u1", encode_sequence(Sequence(["i3"], ["click"], [7])))
            client.publish()
            assert client.rank()["degraded"] == []
            assert client.given.log.impressions()[-1].sequence == Sequence(["i3"], ["click"], [7])

            server.kill()
            for _ in range(10):
                answer = client.rank()
                assert answer["snapshot"] == 1 and "sequence" in answer["degraded"]
            wait_for(lambda: client.rank()["degraded"] == ["sequence", "snapshots"], "the loss is noticed")
            assert client.get("/v1/health")["degraded"] == ["snapshots", "sequence"]

            server.start()  # empty: the trainer begins a new line of versions
            client.trainer = Trainer(store, seed=1)
            client.trainer.publish("full", created_ms=10)
            wait_for(lambda: "snapshots" not in client.rank()["degraded"], "the new line is followed")
            client.publish("delta", created_ms=11)
            wait_for(lambda: client.rank()["degraded"] == [], "sequences are read again")
        store.close()


def test_learned_weights_and_the_switch_of_exploration_arrive_while_it_serves() -> None:
    explore = ExploreConfig(share=1.0, allow_above_cap=True, holdout=0.0)
    given = parts(blender=BlenderConfig(weights={"default": {"click": 1.0, "order": 5.0}}, explore=explore))
    store, blender = MemoryBlenderStore(), given.ranker.blender
    follower = BlenderFollower(store, blender, given.stats, schema_hash="s", elapsed_s=given.ranker.elapsed_s)
    with serving(given, BlenderWatcher(follower, given.stats)) as client:
        client.publish()
        answer, model = client.rank(), client.get("/v1/model")
        assert (answer["blender"], answer["explore"], answer["fallback"]) == (0, False, None)
        assert answer["weights"] == {"click": 1.0, "order": 5.0}
        assert (model["blender"], model["blender_share"], model["exploring"]) == (0, 1.0, False)
        store.put(some_version(1))
        store.promote(1, share=0.25, epoch=0)
        wait_for(lambda: client.get("/v1/model")["blender"] == 1, "the version serves")
        assert client.get("/v1/model")["blender_share"] == 0.25
        store.set_exploration(True, "start")
        wait_for(lambda: client.get("/v1/model")["exploring"], "requests explore")
        answer = client.rank()
        assert answer["explore"] and answer["blender"] == 0  # around the stable lane, which is the config's
        store.set_exploration(False, "stop")
        store.promote(1, share=1.0, epoch=0)
        wait_for(lambda: client.get("/v1/model")["blender_share"] == 1, "it serves everybody")
        wait_for(lambda: not client.get("/v1/model")["exploring"], "nobody explores")
        assert client.rank(scenario="search")["fallback"] == "scenario"
        counters = client.get("/v1/model")["counters"]
        assert counters["blenders_applied"] == 2 and counters["blender_fallback"] == {"scenario": 1}
