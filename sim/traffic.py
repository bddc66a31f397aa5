"""Who asks for a ranking next, where, and when: Poisson arrivals of users in sessions."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sim.catalogue import Floats
from sim.config import SimConfig
from sim.scenario import ScenarioConfig


class _Mix(NamedTuple):
    """The scenarios between two moments at which one comes up, and the ends of their shares from 0 to 1."""

    names: tuple[str, ...]
    edges: Floats

    @classmethod
    def at(cls, scenarios: Mapping[str, ScenarioConfig], run_s: float) -> "_Mix":
        names = tuple(name for name, scenario in scenarios.items() if scenario.from_s <= run_s)
        shares = np.array([scenarios[name].share for name in names])
        return cls(names, np.cumsum(shares / shares.sum()))

    def scenario(self, drawn: float) -> str:
        place = int(np.searchsorted(self.edges, drawn, side="right"))
        return self.names[min(place, len(self.names) - 1)]


class Traffic:
    """Draws requests. A fixed number of sessions is open; each ends with a fixed chance after every request."""

    def __init__(self, config: SimConfig, users: Sequence[str], rng: np.random.Generator) -> None:
        self._users = users
        self._rng = rng
        self.requests_per_s = config.requests_per_s
        """Mean rate of the arrivals; whoever sets it draws the next gap anew."""
        self._end_chance = 1.0 / config.session_requests
        self._scenarios = dict(config.scenarios)
        self._plan()
        self._sessions = [self._new_user() for _ in range(config.num_sessions)]

    def gap_s(self) -> float:
        """Returns the time from one arrival to the next, in seconds."""
        return float(self._rng.exponential(1.0 / self.requests_per_s))

    def open(self, scenario: str, run_s: float) -> None:
        """Lets a scenario come up now, `run_s` seconds after the start, if it has not yet."""
        if not self.is_open(scenario, run_s):
            self._scenarios[scenario] = replace(self._scenarios[scenario], from_s=run_s)
            self._plan()

    def is_open(self, scenario: str, run_s: float) -> bool:
        """Tells whether a scenario has come up."""
        return self._scenarios[scenario].from_s <= run_s

    def next(self, run_s: float) -> tuple[str, str]:
        """Returns the user id and the scenario of the next request, which comes `run_s` seconds after the start."""
        session = int(self._rng.integers(len(self._sessions)))
        user_id = self._sessions[session]
        if self._rng.random() < self._end_chance:
            self._sessions[session] = self._new_user()
        mix = self._mixes[bisect_right(self._starts_s, run_s) - 1]
        return user_id, mix.scenario(self._rng.random())

    def _plan(self) -> None:
        self._starts_s = sorted({scenario.from_s for scenario in self._scenarios.values()})
        self._mixes = [_Mix.at(self._scenarios, start_s) for start_s in self._starts_s]

    def _new_user(self) -> str:
        return self._users[int(self._rng.integers(len(self._users)))]
