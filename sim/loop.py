"""The closed loop: users ask for rankings, act on what they see, and their feedback comes back at the action's time.

One thread holds all state and decides; a pool of threads only waits for HTTP. Arrivals are open-loop: a slow service
does not slow the users down, what it cannot take is counted and skipped.
"""

import logging
import queue
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.behaviour import Action, Interest, Truth, sample_actions, truth
from sim.client import RankAnswer, RankClient
from sim.config import SimConfig
from sim.control import BOT_DELAY_MS, BOT_SHARE, SimChange, SimNow
from sim.delivery import Delivery
from sim.exceptions import ServiceError, UnreachableError
from sim.lift import LiftMeter
from sim.traffic import Traffic
from sim.world import CandidateSet, World
from stream.schema import Feedback

_logger = logging.getLogger(__name__)
_FEEDBACK_BATCH = 200
_MAX_WAITING_FEEDBACK = 100_000
_STOP_CHECK_S = 0.1


@dataclass(slots=True)
class SimCounters:
    """What happened so far, one field per case."""

    requests: int = 0
    """Slates asked for and received."""
    requests_unreachable: int = 0
    """Requests without an answer."""
    requests_failed: int = 0
    """Requests answered with an error, or with a slate that was not asked for."""
    skipped_busy: int = 0
    """Arrivals skipped because too many requests were waiting."""
    skipped_down: int = 0
    """Arrivals skipped in the pause after the service could not be reached."""
    degraded: int = 0
    """Slates that the service itself flagged as degraded."""
    unranked: int = 0
    """Slates served without any snapshot."""
    explored: int = 0
    """Slates served with drawn weights."""
    clicks: int = 0
    """Clicks the users made."""
    orders: int = 0
    """Orders the users made."""
    hides: int = 0
    """Items the users hid."""
    bot_clicks: int = 0
    """Clicks of bots, not among those of the users."""
    feedback_sent: int = 0
    """Feedback accepted by the service, duplicates included."""
    feedback_unreachable: int = 0
    """Feedback calls without an answer; what they carried is sent again."""
    feedback_refused: int = 0
    """Feedback that the service answered with an error; not sent again."""
    feedback_dropped: int = 0
    """Feedback given up because too much was waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    user_id: str
    scenario: str
    candidates: CandidateSet
    truth: Truth


class Simulator:
    """Drives a ranking service with the users of a world.

    `counters`, `lift` and `delivery` may be read from other threads while it runs.
    """

    def __init__(
        self,
        world: World,
        config: SimConfig,
        base_url: str,
        *,
        now_ms: Callable[[], int],
        rng: np.random.Generator,
        monotonic_s: Callable[[], float] = time.monotonic,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Takes the world, the service's address and the clocks.

        `headers` go with every request; `now_ms` stamps events; `monotonic_s` only paces arrivals. One
        `rng` draws traffic, actions and delivery.

        Raises:
            ValueError: not an http(s) address.
        """
        self.counters = SimCounters()
        self.lift = LiftMeter()
        self.delivery = Delivery(config, rng)
        self._world = world
        self._config = config
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._rng = rng
        self._traffic = Traffic(config, world.users(), rng)
        self._interest = Interest(config.interest_half_life_s)
        self._client = RankClient(base_url, timeout_s=config.request_timeout_s, headers=headers)
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._in_flight = 0
        self._is_sending = False
        self._down_until_s = 0.0
        self._next_send_s = 0.0
        self._started_s = self._monotonic_s()
        self._next_arrival_s = 0.0
        self._bots_until_s = 0.0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Runs until `should_stop`, which is asked ten times a second; waits for the calls under way, then returns."""
        pool = ThreadPoolExecutor(self._config.max_in_flight + 1, thread_name_prefix="sim-http")
        try:
            self._drive(pool, should_stop)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._client.close()

    def change(self, change: SimChange) -> None:
        """Changes what it is at. May be called from other threads; it counts from the next turn of the loop on.

        Raises:
            ValueError: not a scenario of this world.
        """
        if change.open_scenario is not None:
            self._world.scenario(change.open_scenario)
        self._done.put(partial(self._change, change))

    def now(self) -> SimNow:
        """Returns what it is at. May be called from other threads."""
        now_s = self._monotonic_s()
        run_s = now_s - self._started_s
        return SimNow(
            requests_per_s=self._traffic.requests_per_s,
            bot_share=BOT_SHARE if now_s < self._bots_until_s else 0.0,
            is_open={name: self._traffic.is_open(name, run_s) for name in self._world.scenario_names},
        )

    def _change(self, change: SimChange) -> None:
        now_s = self._monotonic_s()
        if change.requests_per_s is not None:
            self._traffic.requests_per_s = change.requests_per_s
            self._next_arrival_s = now_s + self._traffic.gap_s()
        if change.bots_for_s is not None:
            self._bots_until_s = now_s + change.bots_for_s
        if change.open_scenario is not None:
            self._traffic.open(change.open_scenario, now_s - self._started_s)

    def _drive(self, pool: ThreadPoolExecutor, should_stop: Callable[[], bool]) -> None:
        self._started_s = self._monotonic_s()
        self._next_arrival_s = self._started_s + self._traffic.gap_s()
        while not should_stop():
            now_s = self._monotonic_s()
            while self._next_arrival_s <= now_s:
                self._arrive(pool, now_s)
                self._next_arrival_s += self._traffic.gap_s()
            self._send_due(pool, now_s)
            wait_s = min(self._next_arrival_s - self._monotonic_s(), self._until_due_s(), _STOP_CHECK_S)
            try:
                self._done.get(timeout=max(wait_s, 0.0))()
                while True:
                    self._done.get_nowait()()
            except queue.Empty:
                continue

    def _until_due_s(self) -> float:
        due_ms = self.delivery.next_due_ms()
        if due_ms is None or self._is_sending:
            return _STOP_CHECK_S
        return max((due_ms - self._now_ms()) / 1_000, self._next_send_s - self._monotonic_s(), 0.001)

    def _arrive(self, pool: ThreadPoolExecutor, now_s: float) -> None:
        user_id, scenario = self._traffic.next(now_s - self._started_s)
        if now_s < self._down_until_s:
            self.counters.skipped_down += 1
            return
        if self._in_flight >= self._config.max_in_flight:
            self.counters.skipped_busy += 1
            return
        now_ms = self._now_ms()
        candidates = self._world.candidates(user_id, scenario, now_ms, self._config.candidates)
        asked = _Asked(
            user_id=user_id,
            scenario=scenario,
            candidates=candidates,
            truth=truth(
                self._world,
                user_id=user_id,
                scenario=scenario,
                now_ms=now_ms,
                candidates=candidates,
                interest_D=self._interest.at(user_id, now_ms),
            ),
        )
        request = {
            "user_id": user_id,
            "scenario": scenario,
            "candidates": {"id": candidates.id, "features": candidates.features},
            "user": self._world.user_features(user_id),
            "context": self._world.context(user_id, scenario, now_ms),
            "size": self._config.slate,
        }
        self._in_flight += 1
        future = pool.submit(self._client.rank, request)
        future.add_done_callback(lambda done: self._done.put(partial(self._answered, asked, done)))

    def _answered(self, asked: _Asked, future: "Future[RankAnswer]") -> None:
        self._in_flight -= 1
        try:
            answer = future.result()
            place_of = {item_id: place for place, item_id in enumerate(asked.candidates.id)}
            shown_K = np.array([place_of[item.id] for item in answer.items], dtype=np.int64)
        except UnreachableError as error:
            self.counters.requests_unreachable += 1
            self._pause(error)
            return
        except ServiceError as error:
            self.counters.requests_failed += 1
            _logger.debug("the service refused a request error=%s", error)
            return
        except KeyError as error:
            self.counters.requests_failed += 1
            _logger.debug("the slate holds an item that was not a candidate item_id=%s", error)
            return
        self.counters.requests += 1
        self.counters.degraded += bool(answer.degraded)
        self.counters.unranked += answer.snapshot == 0
        self.counters.explored += answer.explore
        random, best = asked.truth.bounds(len(shown_K))
        self.lift.add(served=asked.truth.expected_utility(shown_K), random=random, best=best)
        self._act(asked, answer, shown_K)

    def _act(self, asked: _Asked, answer: RankAnswer, shown_K: NDArray[np.int64]) -> None:
        seen_ms = self._now_ms()
        if self._monotonic_s() < self._bots_until_s and self._rng.random() < BOT_SHARE:
            for position in range(len(shown_K)):
                self.counters.bot_clicks += 1
                self._report(asked, answer, position, "click", seen_ms + BOT_DELAY_MS)
            return
        for action in sample_actions(asked.truth, shown_K, self._config, self._rng):
            event_ms = seen_ms + action.delay_ms
            self._count(action)
            if action.action == "click":
                self._interest.clicked(asked.user_id, asked.candidates.vec_ND[shown_K[action.position]], event_ms)
            self._report(asked, answer, action.position, action.action, event_ms)

    def _report(self, asked: _Asked, answer: RankAnswer, position: int, action: str, event_ms: int) -> None:
        if len(self.delivery) >= _MAX_WAITING_FEEDBACK:
            self.counters.feedback_dropped += 1
            return
        item_id = answer.items[position].id
        self.delivery.add(
            Feedback(
                request_id=answer.request_id,
                user_id=asked.user_id,
                item_id=item_id,
                action=action,
                ts=event_ms,
                event_id=f"{answer.request_id}:{item_id}:{action}",
            )
        )

    def _count(self, action: Action) -> None:
        match action.action:
            case "click":
                self.counters.clicks += 1
            case "order":
                self.counters.orders += 1
            case "hide":
                self.counters.hides += 1

    def _send_due(self, pool: ThreadPoolExecutor, now_s: float) -> None:
        """Sends one call at a time, so that a backlog does not take all connections."""
        if self._is_sending or now_s < max(self._next_send_s, self._down_until_s):
            return
        due = self.delivery.due(self._now_ms(), _FEEDBACK_BATCH)
        if not due:
            return
        self._is_sending = True
        self._next_send_s = now_s + self._config.feedback_interval_s
        future = pool.submit(self._client.send_feedback, [feedback for _, feedback in due])
        future.add_done_callback(lambda done: self._done.put(partial(self._sent, due, done)))

    def _sent(self, due: list[tuple[int, Feedback]], future: "Future[None]") -> None:
        self._is_sending = False
        try:
            future.result()
        except UnreachableError as error:
            self.counters.feedback_unreachable += 1
            self.delivery.give_back(due)
            self._pause(error)
        except ServiceError as error:
            self.counters.feedback_refused += len(due)
            _logger.debug("the service refused feedback error=%s", error)
        else:
            self.counters.feedback_sent += len(due)

    def _pause(self, error: UnreachableError) -> None:
        now_s = self._monotonic_s()
        if now_s >= self._down_until_s:
            _logger.warning(
                "the ranking service could not be reached, users wait retry_s=%s error=%s", self._config.retry_s, error
            )
        self._down_until_s = now_s + self._config.retry_s
