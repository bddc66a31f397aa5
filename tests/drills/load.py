"""Users in small, steady numbers: they ask, act, and check every answer. Arrivals do not wait for answers."""

import contextlib
import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from freshrank.config import RunConfig
from ranker.api import RankResponse
from sim.world import World
from tests.drills.checker import Asked, Continuity, Rules, feedback_problems, rank_problems

RANK, FEEDBACK = "/v1/rank", "/v1/feedback"
_TIMEOUT_S = 10.0
"""Long, so that a slow machine shows as latency and only what is lost as unanswered."""
_NUM_WORKERS = 16
_MAX_WAITING = 50
"""Arrivals that wait for a free connection, at most; beyond it users go away, and are counted."""
_NUM_REQUESTS = 300
"""Different requests, made before the first is sent."""
_SIZE, _NUM_CANDIDATES = 10, 30
_ACT_SHARE = 0.5
"""Share of the slates on which a user clicks."""


class Reply(NamedTuple):
    """What became of one call. Times are of `time.monotonic`, in seconds."""

    path: str
    due_s: float
    """When it was to be sent; waiting for a free connection counts as latency."""
    done_s: float
    status: int
    """Of HTTP; 0: no answer."""
    degraded: Sequence[str]
    problems: Sequence[str]
    """What is wrong with the answer, in words."""
    ranker: str = ""
    """Which ranker answered, where a load balancer says so."""


class _Prepared(NamedTuple):
    user_id: str
    asked: Asked
    body: bytes


class Users:
    """Threads that ask the ranker at `rate_per_s`, seeded; `replies` grows as they go."""

    def __init__(self, run: RunConfig, address: str, rate_per_s: float, seed: int, now_ms: Callable[[], int]) -> None:
        """Prepares the requests; nothing is sent yet."""
        self._address, self._rate_per_s, self._now_ms = address, rate_per_s, now_ms
        self._rng = np.random.default_rng(seed)
        self._rules = Rules(tasks=list(run.schema.tasks), scale=run.blender.scale)
        self._requests = _prepare(World(run.sim), run.schema.scenarios, self._rng, now_ms())
        self._due: queue.SimpleQueue[tuple[float, _Prepared, bool] | None] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_NUM_WORKERS)]
        self._threads.append(threading.Thread(target=self._arrive, daemon=True))
        self.continuity = Continuity()
        """What must hold between all answers; behind a load balancer `continuities` has one per ranker."""
        self.continuities: dict[str, Continuity] = {"": self.continuity}
        self.replies: list[Reply] = []
        self.num_skipped = 0
        """Users who went away because too many were waiting: the machine is too slow for the load."""

    def start(self) -> None:
        """Lets them come."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Lets them go; returns when the last answer is there."""
        self._is_over.set()
        for thread in reversed(self._threads):
            thread.join()

    def _arrive(self) -> None:
        next_s = time.monotonic()
        while not self._is_over.is_set():
            next_s += self._rng.exponential(1.0 / self._rate_per_s)
            time.sleep(max(0.0, next_s - time.monotonic()))
            if self._due.qsize() >= _MAX_WAITING:
                self.num_skipped += 1
                continue
            request = self._requests[int(self._rng.integers(len(self._requests)))]
            self._due.put((next_s, request, bool(self._rng.random() < _ACT_SHARE)))
        for _ in range(_NUM_WORKERS):
            self._due.put(None)

    def _work(self) -> None:
        host, _, port = self._address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
        while (job := self._due.get()) is not None:
            due_s, request, acts = job
            answer = self._rank(connection, due_s, request)
            if answer is not None and answer.items and acts:
                self._click(connection, request, answer)
        connection.close()

    def _rank(self, connection: http.client.HTTPConnection, due_s: float, request: _Prepared) -> RankResponse | None:
        sent_ms = self._now_ms()
        status, body, ranker = _post(connection, RANK, request.body)
        done_ms, done_s = self._now_ms(), time.monotonic()
        answer, problems = rank_problems(request.asked, self._rules, status, body)
        if answer is not None:
            problems += self.continuities.setdefault(ranker, Continuity()).problems(answer, sent_ms, done_ms)
        degraded = answer.degraded if answer is not None else ()
        self.replies.append(Reply(RANK, due_s, done_s, status, degraded, problems, ranker))
        return answer

    def _click(self, connection: http.client.HTTPConnection, request: _Prepared, answer: RankResponse) -> None:
        item_id = answer.items[0].id
        click = {
            "request_id": answer.request_id, "user_id": request.user_id, "item_id": item_id, "action": "click",
            "ts": self._now_ms(), "event_id": f"{answer.request_id}:{item_id}",
        }  # fmt: skip
        due_s = time.monotonic()
        status, body, ranker = _post(connection, FEEDBACK, json.dumps([click]).encode())
        problems = feedback_problems(1, status, body)
        self.replies.append(Reply(FEEDBACK, due_s, time.monotonic(), status, (), problems, ranker))


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes, str]:
    """Returns status, body and which ranker it was; status 0: no answer.

    A kept connection that was closed is opened once more.
    """
    is_kept = connection.sock is not None
    try:
        try:
            return _exchange(connection, path, body)
        except ConnectionError:
            connection.close()
            if not is_kept:
                raise
            return _exchange(connection, path, body)
    except (OSError, http.client.HTTPException):
        with contextlib.suppress(OSError):
            connection.close()
        return 0, b"", ""


def _exchange(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes, str]:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read(), response.headers.get("X-Freshrank-Ranker", "")


def _prepare(world: World, scenarios: Sequence[str], rng: np.random.Generator, now_ms: int) -> list[_Prepared]:
    prepared = []
    for _ in range(_NUM_REQUESTS):
        user_id, scenario = str(rng.choice(world.users())), str(rng.choice(scenarios))
        found = world.candidates(user_id, scenario, now_ms, _NUM_CANDIDATES)
        body = {
            "user_id": user_id,
            "scenario": scenario,
            "candidates": {"id": found.id, "features": found.features},
            "user": world.user_features(user_id),
            "context": world.context(user_id, scenario, now_ms),
            "size": _SIZE,
        }
        asked = Asked(item_ids=[str(item) for item in found.id], scenario=scenario, size=_SIZE)
        prepared.append(_Prepared(user_id, asked, json.dumps(body).encode()))
    return prepared
