"""What an operator's monitoring sees while a drill goes on: every process's metrics, and which alarms they raise."""

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from freshrank.scrape import Scrape

Scrapes = Mapping[str, Scrape | None]
"""The last scrape of every process; None: it did not answer."""
_TIMEOUT_S = 2.0
_LOOK_EVERY_S = 0.2
_SCRAPE_EVERY_S = 1.0
_STALE_S = 10.0
"""Model age and watermark ages above this raise an alarm."""
_AGES = (
    ("ranker", "freshrank_ranker_model_age_seconds", "model age"),
    ("trainer", "freshrank_trainer_watermark_age_seconds", "trainer's watermark"),
)
_JOINER_AGE = "freshrank_joiner_watermark_age_seconds"
_RISES = (
    ("ranker", "freshrank_ranker_store_unavailable_total", "ranker: snapshot store gone"),
    ("ranker", "freshrank_ranker_impressions_dropped_total", "ranker: impressions dropped"),
    ("ranker", "freshrank_ranker_delivery_failures_total", "ranker: events given up"),
    ("ranker", "freshrank_ranker_degraded_total", "ranker: degraded answers"),
    ("trainer", "freshrank_trainer_publish_failures_total", "trainer: not published"),
    ("trainer", "freshrank_trainer_checkpoint_failures_total", "trainer: no checkpoint"),
    ("agents", "freshrank_agents_redis_failures_total", "agents: Redis gone"),
    ("joiner", "freshrank_joiner_clock_ahead_total", "joiner: clocks ahead"),
    ("joiner", "freshrank_joiner_malformed_total", "joiner: malformed"),
    ("joiner", "freshrank_joiner_impression_late_total", "joiner: impressions late"),
    ("joiner", "freshrank_joiner_feedback_late_total", "joiner: feedback late"),
    ("joiner", "freshrank_joiner_feedback_outside_window_total", "joiner: feedback outside its window"),
)
PROGRESS = {
    "joiner": "freshrank_joiner_impressions_total",
    "trainer": "freshrank_trainer_steps_total",
    "agents": "freshrank_agents_events_total",
    "ranker": "freshrank_ranker_requests_total",
    "simulator": "freshrank_simulator_requests_total",
}
"""What grows in each process while it does its work."""


def total(scrape: Scrape | None, name: str) -> float:
    """Returns a metric summed over its labels; 0 where it is not."""
    return 0.0 if scrape is None else sum(value for (found, _), value in scrape.samples.items() if found == name)


def started_s(scrape: Scrape | None) -> float:
    """Returns when a process was started, in seconds since the epoch; 0 if nobody knows."""
    return total(scrape, "process_start_time_seconds")


def alarms(before: Scrapes, now: Scrapes) -> set[str]:
    """Returns what a monitoring with a rule for each of our alarms would say."""
    found = {f"{name} does not answer" for name, scrape in now.items() if scrape is None}
    for name, scrape in now.items():
        if scrape is not None and before.get(name) is not None and started_s(scrape) != started_s(before[name]):
            found.add(f"{name} was started again")
    for process, metric, what in _AGES:
        if total(now.get(process), metric) > _STALE_S:
            found.add(f"{what} above {_STALE_S:g} s")
    joiner = now.get("joiner")
    ages = [] if joiner is None else [age for (name, _), age in joiner.samples.items() if name == _JOINER_AGE]
    if max(ages, default=0.0) > _STALE_S:
        found.add(f"joiner's watermark above {_STALE_S:g} s")
    for process, metric, what in _RISES:
        if total(now.get(process), metric) > total(before.get(process), metric):
            found.add(what)
    return found


class Look(NamedTuple):
    """What the ranker says of itself; all None while it does not answer."""

    at_s: float
    version: int | None = None
    age_ms: int | None = None
    degraded: tuple[str, ...] | None = None


class Watch:
    """A thread that looks at everything all the time. What is read from other threads is replaced, never changed."""

    def __init__(self, ranker: str, targets: Mapping[str, str]) -> None:
        self._ranker, self._targets = ranker, targets
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.scrapes: Scrapes = {}
        self.known: dict[str, Scrape] = {}
        """The last scrape that each process answered."""
        self.look = Look(time.monotonic())
        self._before: Scrapes = {}
        self.raised: dict[str, float] = {}
        """Alarms since `expect`, and when they were first raised (`time.monotonic`)."""

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def expect(self) -> None:
        """Forgets the alarms so far: what follows is compared with now."""
        self._before, self.raised = dict(self.known), {}

    def close(self) -> None:
        """Ends the thread."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        scrape_s = 0.0
        with httpx.Client(timeout=_TIMEOUT_S) as client:
            while not self._is_over.wait(_LOOK_EVERY_S):
                self.look = self._look(client)
                if time.monotonic() >= scrape_s:
                    scrape_s = time.monotonic() + _SCRAPE_EVERY_S
                    self.scrapes = {name: scrape(client, address) for name, address in self._targets.items()}
                    self.known = self.known | {name: found for name, found in self.scrapes.items() if found is not None}
                    for alarm in alarms(self._before, self.scrapes):
                        self.raised.setdefault(alarm, time.monotonic())

    def _look(self, client: httpx.Client) -> Look:
        at_s = time.monotonic()
        try:
            model: dict[str, Any] = client.get(f"http://{self._ranker}/v1/model").json()
            health: dict[str, Any] = client.get(f"http://{self._ranker}/v1/health").json()
        except httpx.HTTPError:
            return Look(at_s)
        return Look(at_s, model["version"], model["model_age_ms"], tuple(health["degraded"]))


def scrape(client: httpx.Client, address: str) -> Scrape | None:
    """Returns what a process shows; None if it does not answer."""
    try:
        return Scrape.parse(client.get(f"http://{address}/metrics").raise_for_status().text)
    except httpx.HTTPError:
        return None
