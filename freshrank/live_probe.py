"""A made-up user of a live system: acts once in a while, and measures over HTTP when the rankings know it.

It trusts nothing but answers: neither the stamps of the manifests nor the metrics of the processes. It asks for a
slate of one item, acts on it, and waits until a ranking comes from a version whose watermark has passed the action.
Its user and its item are its own, so that no real user's and no real item's weights learn from it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from ranker.freshness_stages import BOUNDS_MS
from ranker.stats import Histogram

_logger = logging.getLogger(__name__)
USER, ITEM = "freshrank-probe", "freshrank-probe-item"
POLL_S = 0.1
"""Time between two looks at the version that serves: how exact a measurement is."""


@dataclass(slots=True)
class ProbeCounters:
    """What the probe has seen."""

    actions: int = 0
    """Actions sent."""
    known: int = 0
    """Actions that a ranking knew in time."""
    missed: int = 0
    """Actions that no ranking knew in time."""
    failures: int = 0
    """Rounds without an action, because a request was not answered or refused."""


class LiveProbe:
    """One user, one item, one scenario, one ranker (or what stands before several). `clock_ms` is the wall clock."""

    def __init__(
        self,
        http: httpx.Client,
        scenario: str,
        action: str,
        *,
        timeout_ms: int,
        clock_ms: Callable[[], int],
        wait: Callable[[float], bool],
    ) -> None:
        """Sends nothing yet. `wait` sleeps for so many seconds and returns whether to stop."""
        self._http = http
        self._scenario, self._action = scenario, action
        self._timeout_ms = timeout_ms
        self._clock_ms, self._wait = clock_ms, wait
        self.counters = ProbeCounters()
        self.freshness_ms = Histogram(BOUNDS_MS)

    def round(self) -> None:
        """Acts once and waits until a ranking knows it, or until it is given up."""
        try:
            request_id = self._rank()["request_id"]
            acted_ms = self._clock_ms()
            action = {
                "request_id": request_id,
                "user_id": USER,
                "item_id": ITEM,
                "action": self._action,
                "ts": acted_ms,
            }
            self._answer("POST", "/v1/feedback", action)
        except httpx.HTTPError as error:
            self.counters.failures += 1
            _logger.warning("The ranker does not take an action. error=%s", error)
            return
        self.counters.actions += 1
        while self._clock_ms() - acted_ms < self._timeout_ms:
            if self._wait(POLL_S):
                return
            if self._is_known(acted_ms):
                self.counters.known += 1
                self.freshness_ms.observe(self._clock_ms() - acted_ms)
                return
        self.counters.missed += 1
        _logger.warning("No ranking knew an action in time. timeout_ms=%d", self._timeout_ms)

    def _is_known(self, acted_ms: int) -> bool:
        """Looks at the version first, which leaves no trace, and asks for a ranking only when that version knows it."""
        try:
            return self._knows(self._answer("GET", "/v1/model"), acted_ms) and self._knows(self._rank(), acted_ms)
        except httpx.HTTPError as error:
            _logger.debug("The ranker does not answer. error=%s", error)
            return False

    def _knows(self, answer: dict[str, Any], acted_ms: int) -> bool:
        age_ms = answer["model_age_ms"]
        return age_ms is not None and self._clock_ms() - age_ms >= acted_ms

    def _rank(self) -> dict[str, Any]:
        asked = {"user_id": USER, "scenario": self._scenario, "candidates": {"id": [ITEM]}, "size": 1}
        return self._answer("POST", "/v1/rank", asked)

    def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._http.request(method, path, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found
