"""The run's own user: asks for a ranking, clicks in it, and asks again until a model that learned the click ranks.

It is the proof behind the exit code of `freshrank up`, and the clock of "new clone to visibly changed ranking". It acts
over HTTP like anybody else, once per second until it has seen the change; its slates and clicks are ordinary events.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from sim.world import World

_logger = logging.getLogger(__name__)
TIMEOUT_S = 2.0


@dataclass(slots=True)
class ProbeFacts:
    """What the probe has seen; times in ms since the epoch, None until it happens."""

    clicked_ms: int | None = None
    """Event time of its click."""
    learned_ms: int | None = None
    """When a ranking first came from a snapshot whose watermark had passed the click."""
    learned_version: int | None = None
    """That snapshot."""
    changed_ms: int | None = None
    """When such a ranking first had another order than before the click."""


class Probe:
    """One user, one scenario, one set of candidates."""

    def __init__(
        self,
        world: World,
        action: str,
        ranker_url: str,
        size: int,
        clock_ms: Callable[[], int],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Chooses the world's first user and scenario; nothing is sent yet."""
        self.facts = ProbeFacts()
        self._world, self._action, self._size, self._clock_ms = world, action, size, clock_ms
        self._http = httpx.Client(base_url=ranker_url, timeout=TIMEOUT_S, headers=headers)
        self._request: dict[str, Any] | None = None
        self._before: list[str] = []

    def step(self) -> None:
        """Makes one request; a ranker that does not answer yet is tried again at the next step."""
        if self.facts.changed_ms is not None:
            return
        try:
            answer = self._rank()
            order = [item["id"] for item in answer["items"]]
            if self.facts.clicked_ms is None:
                self._click(answer, order)
            else:
                self._look(answer, order)
        except httpx.HTTPError as error:
            _logger.debug("The ranker does not answer yet. error=%s", error)

    def close(self) -> None:
        """Releases the connection."""
        self._http.close()

    def _rank(self) -> dict[str, Any]:
        if self._request is None:
            now = self._clock_ms()
            user, scenario = self._world.users()[0], self._world.scenario_names[0]
            found = self._world.candidates(user, scenario, now, self._size * 2)
            self._request = {
                "user_id": user,
                "scenario": scenario,
                "candidates": {"id": found.id, "features": found.features},
                "user": self._world.user_features(user),
                "context": self._world.context(user, scenario, now),
                "size": self._size,
            }
        return self._post("/v1/rank", self._request)

    def _click(self, answer: dict[str, Any], order: list[str]) -> None:
        """Clicks the last item shown: the one with the farthest way up."""
        clicked_ms = self._clock_ms()
        feedback = {"request_id": answer["request_id"], "item_id": order[-1], "action": self._action, "ts": clicked_ms}
        self._post("/v1/feedback", feedback | {"user_id": self._world.users()[0]})
        self._before, self.facts.clicked_ms = order, clicked_ms

    def _look(self, answer: dict[str, Any], order: list[str]) -> None:
        assert self.facts.clicked_ms is not None
        if not answer["snapshot"] or answer["model_age_ms"] is None:
            return
        now = self._clock_ms()
        if now - answer["model_age_ms"] < self.facts.clicked_ms:
            return
        if self.facts.learned_ms is None:
            self.facts.learned_ms, self.facts.learned_version = now, answer["snapshot"]
        if order != self._before:
            self.facts.changed_ms = now

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._http.post(path, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found
