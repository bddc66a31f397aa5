"""Settings of the simulator: which world, how much traffic, how its events reach us."""

import math
from dataclasses import dataclass, field

from sim.delay import DelayConfig
from sim.mood import MoodConfig
from sim.scenario import ScenarioConfig, default_scenarios

ACTIONS = ("click", "order", "hide")


def _default_delays() -> dict[str, DelayConfig]:
    return {
        "click": DelayConfig(),
        "order": DelayConfig(fast_s=1.5, slow_s=5.0, slow_share=0.4, max_s=12.0),
        "hide": DelayConfig(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """The world, its traffic, and how its events reach us."""

    seed: int = 1
    """Which world; at least 0."""
    num_users: int = 1_000
    """Users, all known from the start; at least 1."""
    num_items: int = 600
    """Items alive at any moment; at least `candidates`."""
    item_life_s: float = 1_800.0
    """How long an item lives, in seconds; a new one then takes its place. At least 1."""
    drift_period_s: float = 3_600.0
    """Tastes go round between two poles once in this many seconds; at least 1."""
    interest_half_life_s: float = 45.0
    """The short-term interest that a click raises halves in this many seconds; above 0."""
    candidates: int = 40
    """Candidates of a request; at least `slate`."""
    slate: int = 10
    """Items shown per request; at least 1."""
    requests_per_s: float = 100.0
    """Mean rate of the Poisson arrivals of requests; above 0."""
    session_requests: float = 6.0
    """Mean requests of a session, geometric; at least 1."""
    num_sessions: int = 40
    """Sessions open at the same time; a request belongs to one of them at random. At least 1."""
    time_scale: float = 1.0
    """Stretches all delays; above 0."""
    scenarios: dict[str, ScenarioConfig] = field(default_factory=default_scenarios)
    """Scenarios by name, at least one; the names must be those of the run's `scenarios`, and may be more under
    `unknown_scenario: add`."""
    moods: dict[str, MoodConfig] = field(default_factory=dict)
    """Moods by name; each request is in one of them, and its context feature `mood` names it. None: no such feature."""
    delays: dict[str, DelayConfig] = field(default_factory=_default_delays)
    """Delay of each action: click, order, hide."""
    utility: dict[str, float] = field(default_factory=lambda: {"click": 1.0, "order": 5.0, "hide": -2.0})
    """Worth of each action: what lift is measured in, and what an ideal ranking sorts by."""
    duplicate_share: float = 0.0
    """Share of the feedback that is sent a second time, with the same event id; from 0 to 1."""
    disorder_share: float = 0.0
    """Share of the feedback that is sent late; from 0 to 1."""
    disorder_s: float = 1.0
    """How late at most, uniformly from 0, in seconds; above 0."""
    sequence_length: int = 20
    """Actions per user written with the impressions of a recorded log, newest first; at least 0."""
    feedback_interval_s: float = 0.02
    """Feedback due within so many seconds is sent in one call; above 0."""
    max_in_flight: int = 64
    """Requests waiting for an answer at most; arrivals beyond it are counted and skipped. At least 1."""
    request_timeout_s: float = 2.0
    """When an HTTP call is given up, in seconds; above 0."""
    retry_s: float = 0.5
    """Pause after the service could not be reached, in seconds; arrivals meanwhile are counted and skipped. Above 0."""

    def __post_init__(self) -> None:
        lows = {
            "seed": 0, "num_users": 1, "slate": 1, "item_life_s": 1, "drift_period_s": 1, "session_requests": 1,
            "num_sessions": 1, "sequence_length": 0, "max_in_flight": 1,
        }  # fmt: skip
        for name, low in lows.items():
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= low):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; a finite number of at least {low}")
        above_zero = (
            "interest_half_life_s", "requests_per_s", "time_scale", "disorder_s", "request_timeout_s", "retry_s",
            "feedback_interval_s",
        )  # fmt: skip
        for name in above_zero:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; a finite number above 0")
        for name in ("duplicate_share", "disorder_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; from 0 to 1")
        if not self.slate <= self.candidates <= self.num_items:
            raise ValueError(
                f"candidates: {self.candidates} is not allowed; from slate ({self.slate}) to num_items"
                f" ({self.num_items})"
            )
        if not self.scenarios:
            raise ValueError("scenarios: at least one is needed")
        first, scenario = next(iter(self.scenarios.items()))
        if scenario.from_s > 0:
            raise ValueError(f"scenarios.{first}.from_s: {scenario.from_s} is not allowed; 0 for the first scenario")
        for name, table in (("delays", self.delays), ("utility", self.utility)):
            if set(table) != set(ACTIONS):
                raise ValueError(f"{name}: {sorted(table)} is not allowed; exactly {', '.join(ACTIONS)}")
